"""The program of warm_worker.py, as the warm process knows it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

COMMANDS = (("python", "-m", "support.warm_worker"),)
QUIET = {"WARM_QUIET": "1"}
SETTLED = frozenset({"WARM_THREADS"})
NATIVE = ("PYTHON", "WARM_NATIVE_")


def prepare(environ: MutableMapping[str, str]) -> None:
    environ.setdefault("WARM_CACHE", f"{environ['HOME']}/cache")


def load() -> None:
    importlib.import_module("support.warm_library")


def can_adopt(environ: Mapping[str, str]) -> bool:
    return environ.get("WARM_THREADS", "1").isdigit()


def adopt(environ: Mapping[str, str]) -> None:
    from support import warm_library

    warm_library.THREADS = environ.get("WARM_THREADS", "all")


def sources() -> list[Path]:
    return [Path(os.environ["WARM_SOURCE"])]
