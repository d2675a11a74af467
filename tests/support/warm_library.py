"""Stands for a library that takes long to import: it keeps what it has read from the environment."""

from __future__ import annotations

import os
import threading

IMPORTED_IN = os.getpid()
MODE = os.environ.get("WARM_MODE", "")
CACHE = os.environ["WARM_CACHE"]
THREADS = os.environ.get("WARM_THREADS", "all")
os.environ["WARM_ADDED"] = "by the library"

if os.environ.get("WARM_STARTS_THREAD"):
    threading.Thread(target=threading.Event().wait, daemon=True).start()


class Store:
    place = os.path.expanduser("~/store")  # noqa: PTH111 (as libraries do)
