"""Artifacts in a directory of a mounted volume: durable by fsync, atomic by rename.

On NFS, too, where no lock is relied on: a rename or a link gives the client the directory's state from the server, so
one that lists a directory after it published there sees what others published before; a handle that another client's
rename made stale is opened again; of two links to one name the second fails, also if its first reply was lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from wrpo_engine.artifacts.checks import address, damaged, make_manifest, read_manifest, require_finite, unknown_file
from wrpo_engine.artifacts.manifest import MANIFEST_NAME, FileEntry, InputEntry, Manifest, digest_of, sha256_of
from wrpo_engine.artifacts.store import Artifact, ArtifactWriter
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import MissingInputError

__all__ = ["VolumeArtifact", "VolumeStore", "VolumeWriter", "address"]

T = TypeVar("T")
_TEMPORARY = ".tmp-"
_LEFTOVER_AGE_S = 3600.0
_STALE_ATTEMPTS = 3
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOTSUP})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory; there the rename itself is durable.
        if not (path.is_dir() and error.errno in _NO_DIRECTORY_SYNC):
            raise
    finally:
        os.close(descriptor)


def _fresh(read: Callable[[], T]) -> T:
    """Read again if the file was replaced from another machine meanwhile (NFS: ESTALE)."""
    for _ in range(_STALE_ATTEMPTS - 1):
        try:
            return read()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return read()


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
            raise unknown_file(self.ref, name, self.files())
        path = self.directory / name
        if name not in self._verified:
            self._check_size(entry)
            if _fresh(lambda: sha256_of(path)) != entry.sha256:
                raise damaged(path, self.ref, "was altered: its sha256 is not the manifest's")
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
            size = _fresh(path.stat).st_size
        except FileNotFoundError:
            raise damaged(path, self.ref, "is missing") from None
        if size != entry.size:
            raise damaged(path, self.ref, f"has {size} bytes where the manifest says {entry.size}")


@dataclass
class VolumeWriter:
    """The output of the running stage; its work directory is the final directory."""

    ref: ArtifactRef
    directory: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, InputEntry]
    now: Callable[[], datetime]

    def begin(self) -> None:
        """Find a volume that cannot be written; full ones are found by writing."""
        place = self.directory
        while not place.exists() and place != place.parent:
            place = place.parent
        if not os.access(place, os.W_OK):
            number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), str(place))

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
        # By listing, not by asking for names: what a client remembers as absent may be there by now.
        names = (path.relative_to(self.directory).as_posix() for path in _files_below(self.directory))
        return sorted(
            name for name in names if name.startswith(prefix) and _TEMPORARY not in name and name != MANIFEST_NAME
        )

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
        require_finite(self.ref, metrics)
        counts = dict(rows or {})
        manifest = make_manifest(
            self.ref,
            [self._entry(name, counts.get(name)) for name in sorted(set(files))],
            config=self.config,
            inputs=self.inputs,
            metrics=metrics,
            details=details,
            now=self.now,
        )
        self._publish_manifest(manifest.to_bytes())
        self._remove_leftovers()
        artifact = _read(self.ref, self.directory)
        assert artifact is not None
        return artifact

    def _entry(self, name: str, rows: int | None) -> FileEntry:
        path = self.directory / name
        # Files that the stage wrote without `publish` (a model directory) become durable here.
        _fresh(lambda: _sync(path))
        _sync(path.parent)
        return FileEntry(name=name, size=path.stat().st_size, sha256=_fresh(lambda: sha256_of(path)), rows=rows)

    def _remove_leftovers(self) -> None:
        """Remove what killed attempts left behind; younger files may be another writer's."""
        before = self.now().timestamp() - _LEFTOVER_AGE_S
        for path in _files_below(self.directory):
            with contextlib.suppress(OSError):
                if path.name.startswith(_TEMPORARY) and path.stat().st_mtime < before:
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


def _files_below(directory: Path) -> Iterator[Path]:
    """Yield all files; directories that vanish meanwhile are passed over."""
    for place, _, names in os.walk(directory):
        yield from (Path(place) / name for name in names)


def _link_or_rename(temporary: Path, final: Path) -> None:
    """Make `final` appear with its whole content unless it is there: the first of two writers wins."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # File systems without hard links; a racing writer replaces a manifest of the same content.
        if not final.exists():
            temporary.replace(final)


def _read(ref: ArtifactRef, directory: Path) -> VolumeArtifact | None:
    path = directory / MANIFEST_NAME
    try:
        content = _fresh(path.read_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return VolumeArtifact(ref, read_manifest(content, ref, path), digest_of(content), directory)


@dataclass
class VolumeStore:
    """Artifacts below `root`, at `<stage>/<hash>/`."""

    root: Path
    now: Callable[[], datetime]

    @property
    def location(self) -> str:
        return str(self.root)

    def local_copy(self, below: str, only: Sequence[str] = ()) -> Path:  # noqa: ARG002 (it is all local already)
        return self.root / below

    def open(self, ref: ArtifactRef) -> Artifact | None:
        return _read(ref, self._directory(ref))

    def writer(
        self, ref: ArtifactRef, *, config: Mapping[str, Any], inputs: Mapping[str, InputEntry]
    ) -> ArtifactWriter:
        return VolumeWriter(ref, self._directory(ref), config, inputs, self.now)

    def _directory(self, ref: ArtifactRef) -> Path:
        return self.root / ref.stage / ref.hash
