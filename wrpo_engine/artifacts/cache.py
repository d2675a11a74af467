"""Local copies of files in a bucket, shared by the processes of one pod.

Below the cache's root, `files/` has the copies under their own names, because libraries read whole directories.
`state/` records for each its properties at verification, so that no process downloads or hashes it again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wrpo_engine.errors import StorageError


@dataclass(frozen=True, slots=True)
class Known:
    """A verified copy."""

    size: int
    etag: str
    """ETag of the copied object."""
    sha256: str


@dataclass(frozen=True, slots=True)
class LocalCache:
    """Copies of one storage root."""

    root: Path

    @classmethod
    def of(cls, identity: str, environ: Mapping[str, str]) -> LocalCache:
        """Below WRPO_SCRATCH, else the directory for temporary files; one for each identity of a storage."""
        scratch = Path(environ.get("WRPO_SCRATCH") or environ.get("TMPDIR") or tempfile.gettempdir())
        name = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return cls(scratch / "wrpo-storage" / name)

    @property
    def files(self) -> Path:
        """The directory of the copies."""
        return self.root / "files"

    def path(self, name: str) -> Path:
        """Return the path of the copy of `name`, whether or not it exists."""
        return self.files / name

    def partial(self, name: str) -> Path:
        """Return the path of an incomplete download."""
        return self.root / "state" / f"{name}.part"

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Lock the file against other processes of this machine; the disk is a local one."""
        path = self.root / "state" / f"{name}.lock"
        with self.named_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def known(self, name: str) -> Known | None:
        """Return the record of a copy, or None if there is none or the copy has changed since."""
        try:
            said = json.loads(self._record(name).read_text())
            found = self.path(name).stat()
            if (said["size"], said["mtime_ns"]) != (found.st_size, found.st_mtime_ns):
                return None
            return Known(said["size"], said["etag"], said["sha256"])
        except (OSError, ValueError, KeyError):
            return None

    def remember(self, name: str, *, etag: str, sha256: str) -> None:
        """Record that the copy equals the object."""
        found = self.path(name).stat()
        said = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "etag": etag, "sha256": sha256}
        record = self._record(name)
        with self.named_errors():
            record.parent.mkdir(parents=True, exist_ok=True)
            temporary = record.with_name(f"{record.name}.{os.getpid()}")
            temporary.write_text(json.dumps(said))
            temporary.replace(record)

    def forget(self, name: str) -> None:
        """Remove a copy."""
        self._record(name).unlink(missing_ok=True)
        self.path(name).unlink(missing_ok=True)

    def _record(self, name: str) -> Path:
        return self.root / "state" / f"{name}.json"

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """Turn a full or read-only disk into an error that distinguishes it from the storage."""
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageError(
                    f"the local disk at {self.root}, which holds copies of what is in S3, is full ({error.strerror})",
                    code="ScratchFull",
                    field="podTemplate",
                    hint="Give the pod more ephemeral storage (its /tmp is an emptyDir), or mount a larger volume and "
                    "set WRPO_SCRATCH to it.",
                ) from error
            if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
                raise StorageError(
                    f"copies of what is in S3 cannot be kept at {self.root} ({error.strerror})",
                    code="ScratchReadOnly",
                    field="podTemplate",
                    hint="Set WRPO_SCRATCH to a directory that the pod can write.",
                ) from error
            raise
