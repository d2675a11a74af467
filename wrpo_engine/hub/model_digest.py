"""Digest of a model directory's content, with a cache of the digests of large files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wrpo_engine.artifacts.manifest import sha256_of

_COMPUTES = ("*.safetensors", "config.json", "*.py")
_LARGE_BYTES = 64 * 2**20


def model_digest(directory: Path, file_digest: Callable[[Path], str] = sha256_of) -> str:
    """Return the digest of all that decides what the model computes: weights, configuration, its own code."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _COMPUTES for path in directory.glob(pattern)):
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class DigestMemory:
    """Digests of large files, kept as long as size, inode, and times of content and inode stay what they were.

    The inode's time moves with every write, also where a copy sets the other one back. Of several processes that ask
    for a file at once, one reads it.
    """

    file: Path

    def sha256_of(self, path: Path) -> str:
        """Return the sha256 of a file in hexadecimal; cached for large files that are unchanged."""
        found = path.stat()
        if found.st_size < _LARGE_BYTES:
            return sha256_of(path)
        facts = [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
        with self._lock():
            known = self._read()
            *remembered, digest = known.get(str(path), [""])
            if remembered != facts:
                digest = sha256_of(path)
                self._write({**known, str(path): [*facts, digest]})
        return str(digest)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.with_suffix(".lock").open("w") as file:
            # Some network file systems have no locks; then every process reads for itself.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, list[int | str]]:
        try:
            known: dict[str, list[int | str]] = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        return known

    def _write(self, known: dict[str, list[int | str]]) -> None:
        temporary = self.file.with_name(f".tmp-{os.getpid()}-{self.file.name}")
        temporary.write_text(json.dumps(known))
        temporary.replace(self.file)
