"""A program that reports how it was started, and ends as its argument says. It is run by a spare and started."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path


def report() -> dict[str, object]:
    """Everything that may depend on how the process came to be, without what identifies it."""
    return {
        "argv": sys.argv,
        "path": sys.path[0],
        "cwd": str(Path.cwd()),
        "env": dict(os.environ),
        "stdin": sys.stdin.read(),
        "leads its session": os.getsid(0) == os.getpid(),
        "handlers": {each.name: str(signal.getsignal(each)) for each in signal.Signals if each.name != "SIGINT"},
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "name": Path("/proc/self/comm").read_text(encoding="ascii"),
        "logging": [logging.root.level, len(logging.root.handlers)],
    }


def main(how: str) -> None:
    atexit.register(print, "at the end")
    print(json.dumps(report()))
    print("an error", file=sys.stderr)
    if how == "killed":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise ValueError("boom")
    if how == "wait":
        time.sleep(600)
    sys.exit(int(how))


if __name__ == "__main__":
    main(sys.argv[1])
