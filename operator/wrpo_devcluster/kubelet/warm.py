"""Warm starts: containers of one program are forked from a process that has imported the program's modules.

An import of PyTorch and transformers takes 7 seconds of a processor, and an experiment has dozens of containers. A
container that cannot be forked is started as usual.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from wrpo_devcluster.kubelet import warm_server
from wrpo_devcluster.kubelet.records import MARKER
from wrpo_devcluster.kubelet.warm_server import MARKER_ROOM, READY, REFUSED, STARTED

log = logging.getLogger(__name__)

_REPLY_S = 5.0
"""Seconds for a reply, which takes milliseconds. The control plane waits meanwhile."""


class WarmProcess:
    """The warm process and the private connection to it, whose end is also the end of the process."""

    def __init__(self, module: str, environment: Mapping[str, str], directory: Path) -> None:
        self._module = module
        self._environment = environment
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_ready = False

    @property
    def pid(self) -> int | None:
        """The process; None if none was started."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process, which gets ready in the background."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        env = {
            **self._environment,
            "HOME": str(self._directory),
            # As in containers without devices.
            "CUDA_VISIBLE_DEVICES": "",
            MARKER: "-" * MARKER_ROOM,
        }
        command = [sys.executable, "-m", warm_server.__name__, self._module]
        own, other = socket.socketpair()
        with other, (self._directory / "warm.log").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=other.fileno(),
                stdout=output,
                stderr=output,
                env=env,
                cwd=self._directory,
                start_new_session=True,
            )
        self._connection, self._is_ready = own, False
        own.settimeout(_REPLY_S)

    def fork(self, spec_file: Path, log_file: Path) -> bool:
        """Start a container's supervisor by a fork; return False, with nothing started, if that is not possible."""
        if self._connection is None or not self._became_ready(self._connection):
            return False
        try:
            self._connection.sendall(json.dumps([str(spec_file), str(log_file)]).encode() + b"\n")
            reply = _line(self._connection)
        except OSError:
            reply = ""
        if reply.startswith(REFUSED):
            log.info("%s is started without the warm process: %s", spec_file, reply.removeprefix(REFUSED).strip())
            return False
        if reply == STARTED:
            return True
        started = self._give_up(self._connection)
        self.start()
        return started

    def close(self) -> None:
        """End the process. Containers that it has forked continue."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _became_ready(self, connection: socket.socket) -> bool:
        if self._is_ready:
            return True
        connection.setblocking(False)
        try:
            self._is_ready = _line(connection) == READY
        except BlockingIOError:
            return False
        except OSError:
            self._is_ready = False
        finally:
            connection.settimeout(_REPLY_S)
        if not self._is_ready:
            # It would fail again.
            log.warning("there are no warm starts: see %s", self._directory / "warm.log")
            self.close()
        return self._is_ready

    def _give_up(self, connection: socket.socket) -> bool:
        """End a process that does not reply; return whether a supervisor was started nevertheless.

        A supervisor announces itself before it starts anything, which fails once this end is shut down.
        """
        log.warning("the warm process has ended or does not reply; another one is started")
        try:
            connection.shutdown(socket.SHUT_RDWR)
            late = _line(connection)
        except OSError:
            late = ""
        self.close()
        return late == STARTED


def _line(connection: socket.socket) -> str:
    """Return the next line; empty at the end of the connection."""
    text = b""
    while not text.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            return ""
        text += byte
    return text.decode().rstrip("\n")
