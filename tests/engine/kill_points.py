"""What SIGKILL leaves of an artifact on a volume, at each point where that can differ."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest


def states_after_kills(
    monkeypatch: pytest.MonkeyPatch, directory: Path, copies: Path, run: Callable[[], object]
) -> list[Path]:
    """Run a stage undisturbed; return copies of its artifact's directory as a kill at each point would leave it.

    Between two operations on files a kill leaves the same, and an fsync follows every operation that matters. So there
    is one copy before each fsync. A file that was not synced before has half of its content there.
    """
    states: list[Path] = []
    synced: set[int] = set()
    lock = threading.Lock()
    original = os.fsync

    def fsync(descriptor: int) -> None:
        with lock:
            state = copies / f"{len(states):03d}"
            shutil.copytree(directory, state)
            states.append(state)
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_ino not in synced:
                _halve(found, directory, state)
                synced.add(found.st_ino)
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        run()
    return states


def _halve(file: os.stat_result, directory: Path, copy: Path) -> None:
    """Cut a file under each of its names."""
    for path in directory.rglob("*"):
        if path.stat().st_ino == file.st_ino:
            os.truncate(copy / path.relative_to(directory), file.st_size // 2)
