"""Spare processes: forked from a warm process before it has threads, they become programs of the engine later.

A rank of a training and a judge's server import PyTorch and transformers, 7 seconds of a processor. The embedded
control plane's warm process has imported them, and so has a stage that was forked from it. But the stage has threads
when it starts a program, and a fork would lose them together with the locks that they hold. So it forks beforehand,
and the fork waits for a task. Everywhere else there are no spares, and programs are started as usual.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from wrpo_engine.process import warm

_PROGRAM = "wrpo_engine"
_NAME = b"wrpo-engine"
"""What `ps` shows of a spare that runs the program."""
_WAITING: list[_Spare] = []
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_DESCRIPTORS = 3


class Process(Protocol):
    """What a started program is asked; `subprocess.Popen` has it, too."""

    pid: int
    args: Any

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise subprocess.TimeoutExpired after `timeout` seconds."""


@dataclass(frozen=True, slots=True)
class _Spare:
    pid: int
    connection: socket.socket
    descriptor: int
    """pidfd, which becomes readable when the process ends."""


@dataclass
class ForkedProcess:
    """A spare that runs a program."""

    args: Sequence[str]
    pid: int
    _descriptor: int
    _code: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs. Safe to call from several threads."""
        with self._lock:
            if self._code is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
                    os.close(self._descriptor)
            return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise subprocess.TimeoutExpired after `timeout` seconds."""
        code = self.poll()
        if code is None:
            poller = select.poll()
            poller.register(self._descriptor, select.POLLIN)
            poller.poll(None if timeout is None else timeout * 1000)
            code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        return code


def keep(count: int, environ: Mapping[str, str]) -> None:
    """Fork `count` spares if this process is warm, has one thread and can use no device."""
    if not _can_fork(environ):
        return
    for _ in range(count):
        own, other = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            # At once, because the group may be signalled from the start of its task on.
            os.setsid()
            own.close()
            _forget()
            _serve(other)
        other.close()
        _WAITING.append(_Spare(pid, own, os.pidfd_open(pid)))


def _can_fork(environ: Mapping[str, str]) -> bool:
    is_warm = all(name in sys.modules for name in warm.MODULES)
    threads = list(Path("/proc/self/task").iterdir())
    return is_warm and environ.get("CUDA_VISIBLE_DEVICES") == "" and len(threads) == 1


def start(command: Sequence[str], environ: Mapping[str, str], *, output: int, ends_with_parent: bool) -> Process:
    """Start a program in a separate session, by a spare if one waits and the program is the engine.

    `output` is the descriptor of its stdout and stderr. With `ends_with_parent`, the kernel ends it with the thread
    that starts it, or that has forked the spare.
    """
    forked = by_spare(command, environ, (output, output), ends_with_parent=ends_with_parent)
    if forked is not None:
        return forked
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=dict(environ),
        start_new_session=True,
        preexec_fn=_end_with_parent if ends_with_parent else None,  # noqa: PLW1509 (one call of libc)
    )


def by_spare(
    command: Sequence[str], environ: Mapping[str, str], outputs: tuple[int, int], *, ends_with_parent: bool = False
) -> ForkedProcess | None:
    """Let a spare run `python -m wrpo_engine ...` with these stdout and stderr; None if that is not possible."""
    words = [word for word in command if word != "-u"]
    if words[:3] != [sys.executable, "-m", _PROGRAM]:
        return None
    task = {"arguments": words[3:], "environ": dict(environ), "ends_with_parent": ends_with_parent}
    while _WAITING:
        spare = _WAITING.pop()
        with spare.connection, open(os.devnull, "rb") as nothing, contextlib.suppress(OSError):  # noqa: PTH123
            socket.send_fds(spare.connection, [b"\n"], [nothing.fileno(), *outputs])
            spare.connection.sendall(json.dumps(task).encode())
            return ForkedProcess(command, spare.pid, spare.descriptor)
        os.kill(spare.pid, signal.SIGKILL)
        os.waitpid(spare.pid, 0)
        os.close(spare.descriptor)
    return None


def _end_with_parent() -> None:
    """Let the kernel end this process with the thread that started it, also if that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _forget() -> None:
    """Drop what the parent has set for itself: its spares, handlers of signals, and logging."""
    for spare in _WAITING:
        spare.connection.close()
        os.close(spare.descriptor)
    _WAITING.clear()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for handler in list(logging.root.handlers):
        logging.root.removeHandler(handler)
    logging.root.setLevel(logging.WARNING)


def _serve(connection: socket.socket) -> NoReturn:
    """Wait for a task and run it. The process ends as a started one would end."""
    with connection:
        first, descriptors, _, _ = socket.recv_fds(connection, 1, _DESCRIPTORS)
        text = b"".join(iter(lambda: connection.recv(65536), b""))
    if not first:
        # It was not needed.
        os._exit(0)
    task = json.loads(text)
    if task["ends_with_parent"]:
        _end_with_parent()
    for target, source in enumerate(descriptors):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(task["environ"])
    _run(task["arguments"])


def _run(arguments: Sequence[str]) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, _NAME)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warm.adopt(os.environ)
    sys.argv, sys.path[0] = [_PROGRAM, *arguments], str(Path.cwd())
    # It was imported; it is the program now.
    sys.modules.pop(f"{_PROGRAM}.__main__", None)
    try:
        runpy.run_module(_PROGRAM, run_name="__main__", alter_sys=True)
    except Exception:  # noqa: BLE001 (the outermost frame of the program)
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)
