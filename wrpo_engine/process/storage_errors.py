"""Meaning of errors of the operating system for the storage of artifacts."""

from __future__ import annotations

import errno
from pathlib import Path

from wrpo_engine.contract.storage import StorageField
from wrpo_engine.errors import StorageError

_STORAGE_ERRORS: dict[int, tuple[str, str, str]] = {
    errno.ENOSPC: ("StorageFull", "is full", "Enlarge the volume or remove artifacts that are not needed, then retry."),
    errno.EDQUOT: ("StorageFull", "is over its quota", "Raise the quota or remove artifacts, then retry."),
    errno.EROFS: (
        "StorageReadOnly",
        "is read-only",
        f"Mount the storage volume read-write ({StorageField.VOLUME_CLAIM}).",
    ),
    errno.EACCES: (
        "StorageForbidden",
        "refuses access",
        "Make the storage volume writable for the pod's user or group (fsGroup in podTemplate).",
    ),
}
_STORAGE_ERRORS[errno.EPERM] = _STORAGE_ERRORS[errno.EACCES]


def storage_error(error: OSError, where: Path | str | None = None) -> StorageError | None:
    """Return what an OSError means for the storage, or None if it means something else."""
    known = _STORAGE_ERRORS.get(error.errno or 0)
    if known is None:
        return None
    code, state, hint = known
    path = error.filename or where
    place = f"the storage at {path}" if path else "the storage"
    return StorageError(f"{place} {state} ({error.strerror})", code=code, field=StorageField.STORAGE, hint=hint)
