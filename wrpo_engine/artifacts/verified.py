"""Record of large files that were verified against their manifest, so that no later process reads 140 GB again.

A record is next to the artifact's files and holds for a file of that size and time of change. Where none can be
written, as on a volume that is mounted read-only, every process verifies the file itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from pathlib import Path

from wrpo_engine.artifacts.manifest import FileEntry

_DIRECTORY = ".verified"
# Not .json, which readers of whole directories interpret as data.
_SUFFIX = ".ok"


def is_record(name: str) -> bool:
    """Return whether a file of an artifact's directory is a record and not the artifact's."""
    return name.startswith(f"{_DIRECTORY}/")


def is_recorded(directory: Path, entry: FileEntry, found: os.stat_result) -> bool:
    """Return whether the file, which `found` describes, was verified against the manifest."""
    try:
        said = json.loads(_record(directory, entry).read_text())
    except (OSError, ValueError):
        return False
    return bool(said == _content(entry, found))


def record(directory: Path, entry: FileEntry, found: os.stat_result) -> None:
    """Record that the file, which `found` described before and after it was read, matches the manifest."""
    path = _record(directory, entry)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(_content(entry, found)))
        temporary.replace(path)


def _record(directory: Path, entry: FileEntry) -> Path:
    return directory / _DIRECTORY / f"{entry.name}{_SUFFIX}"


def _content(entry: FileEntry, found: os.stat_result) -> dict[str, object]:
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": entry.sha256}
