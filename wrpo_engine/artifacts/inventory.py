"""Inventory of a storage: every artifact, finished or not, with its size; and removal of one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from wrpo_engine.artifacts.checks import address, read_manifest
from wrpo_engine.artifacts.manifest import MANIFEST_NAME, Manifest
from wrpo_engine.artifacts.s3_client import S3Bucket
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.stages import STAGES
from wrpo_engine.errors import DataError

_ADDRESS = re.compile(rf"^((?:{'|'.join(map(re.escape, STAGES))})(?:/[a-z0-9][a-z0-9-]*)?)/([0-9a-f]{{16}})/(.+)$")
"""Only paths of this form are artifacts: models and data sets of users may be in the same storage."""


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact in the storage."""

    ref: ArtifactRef
    files: int
    size: int
    """Bytes of all files, including those that the manifest does not list."""
    modified: datetime
    """Modification time of the file that changed last."""
    manifest: Manifest | None = None
    fault: str | None = None
    """Why its manifest cannot be read."""

    @property
    def address(self) -> str:
        """Path of the artifact below the storage root."""
        return address(self.ref)

    @property
    def state(self) -> str:
        """`Damaged`, `Complete` or `Unfinished`."""
        return "Damaged" if self.fault else "Complete" if self.manifest else "Unfinished"


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was started and never completed; it takes space that no listing shows."""

    key: str
    upload_id: str
    begun: datetime


class Inventory(Protocol):
    """All artifacts of a storage."""

    @property
    def location(self) -> str:
        """The storage root, for messages."""
        ...

    def artifacts(self) -> list[Found]:
        """Return all artifacts, sorted by address."""
        ...

    def remove(self, found: Found) -> None:
        """Remove an artifact: its manifest first, so that no reader treats the rest as complete."""
        ...

    def uploads(self) -> list[Upload]:
        """Return the unfinished multipart uploads of artifacts' files."""
        ...

    def abort(self, upload: Upload) -> None:
        """Abort an unfinished upload, which frees its space."""
        ...


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    modified: datetime


def _group(files: Iterable[_File]) -> dict[ArtifactRef, list[_File]]:
    groups: dict[ArtifactRef, list[_File]] = {}
    for file in files:
        match = _ADDRESS.match(file.name)
        if match is not None:
            ref = ArtifactRef(stage=match.group(1), hash=match.group(2))
            groups.setdefault(ref, []).append(_File(match.group(3), file.size, file.modified))
    return groups


def _found(ref: ArtifactRef, files: list[_File], manifest: bytes | None, place: str) -> Found:
    read, fault = None, None
    if manifest is not None:
        try:
            read = read_manifest(manifest, ref, place)
        except DataError as error:
            fault = error.message
    return Found(ref, len(files), sum(file.size for file in files), max(file.modified for file in files), read, fault)


@dataclass(frozen=True, slots=True)
class VolumeInventory:
    """Artifacts below a directory."""

    root: Path

    @property
    def location(self) -> str:
        """The root directory."""
        return str(self.root)

    def artifacts(self) -> list[Found]:
        """Return all artifacts, sorted by address."""
        groups = _group(self._files())
        found = [self._read(ref, files) for ref, files in groups.items()]
        return sorted(found, key=lambda each: each.address)

    def _files(self) -> Iterable[_File]:
        for kind in STAGES:
            for place, _, names in os.walk(self.root / kind):
                for name in names:
                    path = Path(place) / name
                    # It may vanish while a stage works.
                    with contextlib.suppress(FileNotFoundError):
                        stat = path.lstat()
                        modified = datetime.fromtimestamp(stat.st_mtime, UTC)
                        yield _File(path.relative_to(self.root).as_posix(), stat.st_size, modified)

    def _read(self, ref: ArtifactRef, files: list[_File]) -> Found:
        path = self.root / address(ref) / MANIFEST_NAME
        content = None
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
        return _found(ref, files, content, str(path))

    def remove(self, found: Found) -> None:
        """Remove an artifact, its manifest first, and the directories above it that become empty."""
        directory = self.root / found.address
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        shutil.rmtree(directory)
        for parent in directory.parents:
            if parent == self.root:
                break
            with contextlib.suppress(OSError):
                # Only empty ones are removed.
                parent.rmdir()

    def uploads(self) -> list[Upload]:
        """Return an empty list: a volume has no multipart uploads."""
        return []

    def abort(self, upload: Upload) -> None:
        """There are none on a volume."""


@dataclass(frozen=True, slots=True)
class S3Inventory:
    """Artifacts below a prefix of a bucket."""

    bucket: S3Bucket

    @property
    def location(self) -> str:
        """The URI of the storage root."""
        return self.bucket.root_uri

    def artifacts(self) -> list[Found]:
        """Return all artifacts, sorted by address."""
        files = (
            _File(entry.key, entry.size, entry.modified) for kind in STAGES for entry in self.bucket.listing(f"{kind}/")
        )
        found = [self._read(ref, group) for ref, group in _group(files).items()]
        return sorted(found, key=lambda each: each.address)

    def _read(self, ref: ArtifactRef, files: list[_File]) -> Found:
        name = f"{address(ref)}/{MANIFEST_NAME}"
        content = self.bucket.read(name) if any(file.name == MANIFEST_NAME for file in files) else None
        return _found(ref, files, content, self.bucket.uri(name))

    def remove(self, found: Found) -> None:
        """Remove an artifact, its manifest first."""
        self.bucket.delete([f"{found.address}/{MANIFEST_NAME}"])
        self.bucket.delete([entry.key for entry in self.bucket.listing(f"{found.address}/")])

    def uploads(self) -> list[Upload]:
        """Return the unfinished multipart uploads of artifacts' files."""
        cut = len(self.bucket.key(""))
        return [
            Upload(entry["Key"][cut:], entry["UploadId"], entry["Initiated"])
            for entry in self.bucket.unfinished_uploads()
            if _ADDRESS.match(entry["Key"][cut:])
        ]

    def abort(self, upload: Upload) -> None:
        """Abort an unfinished upload, which frees its space."""
        self.bucket.abort(upload.key, upload.upload_id)
