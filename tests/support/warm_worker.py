"""A container's program that reports how it was started, and ends as its argument says."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from support import warm_program


def report() -> dict[str, object]:
    """Everything that may depend on how the process came to be, without what identifies it."""
    from support import warm_library

    return {
        "argv": sys.argv,
        "path": sys.path[0],
        "main": getattr(sys.modules["__main__"].__spec__, "name", None),
        "cwd": str(Path.cwd()),
        "env": dict(os.environ),
        "stdin": sys.stdin.read(),
        "unbuffered": getattr(sys.stdout, "write_through", None),
        "leads its group": os.getpgrp() == os.getpid(),
        "session of its parent": os.getsid(0) == os.getppid(),
        "handlers": {each.name: str(signal.getsignal(each)) for each in signal.Signals if each.name != "SIGINT"},
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "name": Path("/proc/self/comm").read_text(encoding="ascii"),
        "mark": os.environ["WRPO_DEVCLUSTER_CONTAINER"] in Path("/proc/self/environ").read_text(encoding="utf-8"),
        "library": [warm_library.MODE, warm_library.CACHE, warm_library.THREADS, warm_library.Store.place],
    }


def end(_number: int, _frame: FrameType | None) -> NoReturn:
    # Not print: the signal may come before the print of "up" has returned.
    os.write(1, b"stopped\n")
    sys.exit(143)


def main(how: str) -> None:
    warm_program.prepare(os.environ)
    from support import warm_library

    if how == "wait":
        signal.signal(signal.SIGTERM, end)
        if os.fork() == 0:
            # A stray: in another session, and without the signal that ends it with its parent.
            os.setsid()
            Path("stray").write_text(str(os.getpid()), encoding="ascii")
            time.sleep(600)
        print("up", flush=True)
        time.sleep(600)
    print(json.dumps(report()), flush=True)
    Path(os.environ["MESSAGE"]).write_text("forked" if os.getpid() != warm_library.IMPORTED_IN else "started")
    atexit.register(print, "at the end")
    subprocess.run(["sh", "-c", "echo of a child $WARM_ADDED"], check=True)
    if how == "raise":
        raise ValueError("boom")
    sys.exit(int(how) if how.isdigit() else how)


if __name__ == "__main__":
    main(sys.argv[1])
