"""The client of `rank_server`: processes that start at once and look like `subprocess.Popen`."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_POLL_S = 0.005


class RankServer:
    """One server for the whole test session; requests come from any thread."""

    def __init__(self) -> None:
        environ = {
            **os.environ,
            "PYTHONPATH": f"{HERE.parents[2]}:{HERE}",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "rank_server.py")],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        self._reply()
        atexit.register(self.close)

    def ask(self, request: Mapping[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._reply()

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Libraries may print on import; replies are lines of JSON.
            with contextlib.suppress(ValueError):
                return json.loads(line)
        raise RuntimeError("the rank server ended")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@functools.cache
def server() -> RankServer:
    return RankServer()


@dataclass
class ForkedRank:
    """A forked process; the part of Popen's interface that tests use."""

    pid: int
    returncode: int | None = None

    @classmethod
    def start(
        cls, arguments: Sequence[str], environ: Mapping[str, str], output: Path, *, fault: str | None = None
    ) -> ForkedRank:
        request = {"arguments": list(arguments), "environ": dict(environ), "output": str(output), "fault": fault}
        return cls(server().ask(request))

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = server().ask({"reap": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout or 0)
            time.sleep(_POLL_S)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
