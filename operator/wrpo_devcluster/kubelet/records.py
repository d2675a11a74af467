"""Records on disk of each run of a container, and the liveness of their processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrpo_devcluster.kubelet.shim import start_ticks

MARKER = "WRPO_DEVCLUSTER_CONTAINER"
"""Environment variable of every process of a container, by which strays are found."""


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a run ended. `error` says why the process did not start; it is empty otherwise."""

    exit_code: int
    signal: int
    error: str
    started_at: str
    finished_at: str


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """The processes of a run. Pid and start together identify one until the machine restarts."""

    shim_pid: int
    shim_start: int
    pid: int
    start: int
    boot_id: str
    started_at: str

    def is_alive(self) -> bool:
        """Return whether the supervisor lives, which lives as long as any process of the container."""
        return self.boot_id == boot_id() and is_running(self.shim_pid, self.shim_start)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the container's process group, unless its leader is gone."""
        if self.boot_id == boot_id() and is_running(self.pid, self.start):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Files of the n-th run of a container, counted from 0."""

    directory: Path
    number: int

    def _file(self, suffix: str) -> Path:
        return self.directory / f"{self.number}.{suffix}"

    @property
    def spec_file(self) -> Path:
        """What the shim is to start."""
        return self._file("spec.json")

    @property
    def pid_file(self) -> Path:
        """The ProcessRecord, once the process has started."""
        return self._file("pid.json")

    @property
    def exit_file(self) -> Path:
        """The ExitRecord, once the process has ended."""
        return self._file("exit.json")

    @property
    def log_file(self) -> Path:
        """The output in the form of container runtimes."""
        return self._file("log")

    @property
    def termination_file(self) -> Path:
        """The termination message that the container writes."""
        return self._file("termination")

    def process(self) -> ProcessRecord | None:
        """Return the processes of the run; None before it has started."""
        data = _read(self.pid_file)
        return ProcessRecord(**data) if data else None

    def exit(self) -> ExitRecord | None:
        """Return how the run ended; None while it has not."""
        data = _read(self.exit_file)
        return ExitRecord(**data) if data else None

    def following(self) -> Attempt:
        """Return the next run of the container."""
        return Attempt(self.directory, self.number + 1)


def last_attempt(directory: Path) -> Attempt | None:
    """Return the newest run of a container; None if it never ran."""
    numbers = [int(file.name.split(".")[0]) for file in directory.glob("*.spec.json")]
    return Attempt(directory, max(numbers)) if numbers else None


def boot_id() -> str:
    """Return the id of this start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_running(pid: int, start: int) -> bool:
    """Return whether the process lives and is no zombie. `start` distinguishes it from others with its pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return stat.rpartition(")")[2].split()[0] != "Z" and start_ticks(pid) == start
    except OSError:
        return False


def kill_strays(marker: str) -> int:
    """Kill processes of a container whose supervisor is gone; return how many there were."""
    needle = f"{MARKER}={marker}".encode()
    killed = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue
        if any(part.startswith(needle) for part in environ.split(b"\0")):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
    return killed


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError):
        return None
