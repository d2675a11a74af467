"""Artifacts in a directory of a mounted volume: durable by fsync, atomic by rename."""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wrpo_engine import __version__
from wrpo_engine.artifacts.manifest import MANIFEST_NAME, FileEntry, InputEntry, Manifest, digest_of, sha256_of
from wrpo_engine.artifacts.store import Artifact, ArtifactWriter
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import DataError, MissingInputError

_TEMPORARY = ".tmp-"
_LEFTOVER_AGE_S = 3600.0


def address(ref: ArtifactRef) -> str:
    return f"{ref.stage}/{ref.hash}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, ref: ArtifactRef, what: str) -> DataError:
    return DataError(
        f"file {path} of artifact {address(ref)} {what}",
        code="ArtifactDamaged",
        hint=f"Remove the directory {address(ref)} below the storage root; the stage that made it runs again.",
    )


@dataclass
class VolumeArtifact:
    """A committed artifact in a directory."""

    ref: ArtifactRef
    manifest: Manifest
    digest: str
    directory: Path
    _verified: set[str] = field(default_factory=set)

    def file(self, name: str) -> Path:
        entry = next((entry for entry in self.manifest.files if entry.name == name), None)
        if entry is None:
            known = ", ".join(self.files()) or "none"
            raise DataError(
                f"artifact {address(self.ref)} has no file {name!r}; its files: {known}", code="ArtifactDamaged"
            )
        path = self.directory / name
        if name not in self._verified:
            self._check_size(entry)
            if sha256_of(path) != entry.sha256:
                raise _damaged(path, self.ref, "was altered: its sha256 is not the manifest's")
            self._verified.add(name)
        return path

    def files(self, prefix: str = "") -> list[str]:
        return [entry.name for entry in self.manifest.files if entry.name.startswith(prefix)]

    def check_sizes(self) -> None:
        """Find missing and truncated files without reading them."""
        for entry in self.manifest.files:
            self._check_size(entry)

    def _check_size(self, entry: FileEntry) -> None:
        path = self.directory / entry.name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise _damaged(path, self.ref, "is missing") from None
        if size != entry.size:
            raise _damaged(path, self.ref, f"has {size} bytes where the manifest says {entry.size}")


@dataclass
class VolumeWriter:
    """The output of the running stage; its work directory is the final directory."""

    ref: ArtifactRef
    directory: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, InputEntry]
    now: Callable[[], datetime]

    def publish(self, name: str, write: Callable[[Path], None]) -> Path:
        final = self.directory / name
        final.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays the name's: writers choose formats by it. The uuid keeps two pods apart.
        temporary = final.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{final.name}")
        try:
            write(temporary)
            _sync(temporary)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(final.parent)
        return final

    def published(self, prefix: str = "") -> list[str]:
        names = (path.relative_to(self.directory).as_posix() for path in self.directory.rglob("*") if path.is_file())
        return sorted(name for name in names if name.startswith(prefix) and _TEMPORARY not in name)

    def fetch(self, name: str) -> Path:
        path = self.directory / name
        if not path.is_file():
            raise MissingInputError(
                f"file {name} of the unfinished artifact {address(self.ref)} is not there",
                hint="Another pod may have removed it; the next attempt looks again.",
            )
        return path

    def discard(self, prefix: str) -> None:
        for name in self.published(prefix):
            (self.directory / name).unlink(missing_ok=True)
        # A directory that is now empty would look like something is there.
        for path in sorted(self.directory.rglob("*"), reverse=True):
            if path.is_dir() and path.relative_to(self.directory).as_posix().startswith(prefix.rstrip("/")):
                with contextlib.suppress(OSError):
                    path.rmdir()

    def committed(self) -> Artifact | None:
        artifact = _read(self.ref, self.directory)
        if artifact is not None:
            artifact.check_sizes()
        return artifact

    def commit(
        self,
        *,
        files: Iterable[str],
        rows: Mapping[str, int] | None = None,
        metrics: Mapping[str, float] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Artifact:
        if (existing := self.committed()) is not None:
            return existing
        for name, value in (metrics or {}).items():
            if not math.isfinite(value):
                raise DataError(f"metric {name} of {address(self.ref)} is {value}", code="MetricNotFinite")
        counts = dict(rows or {})
        entries = [self._entry(name, counts.get(name)) for name in sorted(set(files))]
        manifest = Manifest(
            stage=self.ref.stage,
            hash=self.ref.hash,
            config=dict(self.config),
            inputs=dict(self.inputs),
            files=entries,
            metrics=dict(sorted((metrics or {}).items())),
            details=dict(details or {}),
            engine_version=__version__,
            created_at=self.now(),
        )
        self._publish_manifest(manifest.to_bytes())
        self._remove_leftovers()
        artifact = _read(self.ref, self.directory)
        assert artifact is not None
        return artifact

    def _entry(self, name: str, rows: int | None) -> FileEntry:
        path = self.directory / name
        # Files that the stage wrote without `publish` (a model directory) become durable here.
        _sync(path)
        _sync(path.parent)
        return FileEntry(name=name, size=path.stat().st_size, sha256=sha256_of(path), rows=rows)

    def _remove_leftovers(self) -> None:
        """Remove what killed attempts left behind; younger files may be another writer's."""
        before = self.now().timestamp() - _LEFTOVER_AGE_S
        for path in self.directory.rglob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_mtime < before:
                    path.unlink()

    def _publish_manifest(self, content: bytes) -> None:
        final = self.directory / MANIFEST_NAME
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{MANIFEST_NAME}")
        try:
            temporary.write_bytes(content)
            _sync(temporary)
            _link_or_rename(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(self.directory)


def _link_or_rename(temporary: Path, final: Path) -> None:
    """Make `final` appear with its whole content unless it is there: the first of two writers wins."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return
    except OSError:
        # File systems without hard links; a racing writer replaces a manifest of the same content.
        if not final.exists():
            temporary.replace(final)


def _read(ref: ArtifactRef, directory: Path) -> VolumeArtifact | None:
    path = directory / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(path, ref, f"is not a valid manifest: {error.errors()[0]['msg']}") from None
    if (manifest.stage, manifest.hash) != (ref.stage, ref.hash):
        raise _damaged(path, ref, f"belongs to {manifest.stage}/{manifest.hash}")
    return VolumeArtifact(ref, manifest, digest_of(content), directory)


@dataclass
class VolumeStore:
    """Artifacts below `root`, at `<stage>/<hash>/`."""

    root: Path
    now: Callable[[], datetime]

    def open(self, ref: ArtifactRef) -> Artifact | None:
        return _read(ref, self._directory(ref))

    def writer(
        self, ref: ArtifactRef, *, config: Mapping[str, Any], inputs: Mapping[str, InputEntry]
    ) -> ArtifactWriter:
        return VolumeWriter(ref, self._directory(ref), config, inputs, self.now)

    def _directory(self, ref: ArtifactRef) -> Path:
        return self.root / ref.stage / ref.hash
