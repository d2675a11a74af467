"""What lies in a storage: every artifact, finished or not, with its size; and removing one."""

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
"""Only what has an artifact's address is one: models and data sets of users may lie in the same storage."""


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact as it lies there."""

    ref: ArtifactRef
    files: int
    size: int
    """Bytes of all files, also of those that the manifest does not list."""
    modified: datetime
    """Of the file that changed last."""
    manifest: Manifest | None = None
    fault: str | None = None
    """Why its manifest cannot be read."""

    @property
    def address(self) -> str:
        return address(self.ref)

    @property
    def state(self) -> str:
        return "Damaged" if self.fault else "Complete" if self.manifest else "Unfinished"


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was begun and never ended; it takes space that no listing shows."""

    key: str
    upload_id: str
    begun: datetime


class Inventory(Protocol):
    """A storage seen as a whole."""

    @property
    def location(self) -> str: ...

    def artifacts(self) -> list[Found]:
        """Return all artifacts, sorted by address."""
        ...

    def remove(self, found: Found) -> None:
        """Remove an artifact: its manifest first, so that no reader takes the rest for whole."""
        ...

    def uploads(self) -> list[Upload]: ...

    def abort(self, upload: Upload) -> None: ...


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
        return str(self.root)

    def artifacts(self) -> list[Found]:
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
        directory = self.root / found.address
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        shutil.rmtree(directory)
        for parent in directory.parents:
            if parent == self.root:
                break
            with contextlib.suppress(OSError):
                # Only empty ones go.
                parent.rmdir()

    def uploads(self) -> list[Upload]:
        return []

    def abort(self, upload: Upload) -> None:
        """There are none on a volume."""


@dataclass(frozen=True, slots=True)
class S3Inventory:
    """Artifacts below a prefix of a bucket."""

    bucket: S3Bucket

    @property
    def location(self) -> str:
        return self.bucket.root_uri

    def artifacts(self) -> list[Found]:
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
        self.bucket.delete([f"{found.address}/{MANIFEST_NAME}"])
        self.bucket.delete([entry.key for entry in self.bucket.listing(f"{found.address}/")])

    def uploads(self) -> list[Upload]:
        cut = len(self.bucket.key(""))
        return [
            Upload(entry["Key"][cut:], entry["UploadId"], entry["Initiated"])
            for entry in self.bucket.unfinished_uploads()
            if _ADDRESS.match(entry["Key"][cut:])
        ]

    def abort(self, upload: Upload) -> None:
        self.bucket.abort(upload.key, upload.upload_id)
