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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from wrpo_engine.artifacts.base import AT_ONCE, SMALL_BYTES, TEMPORARY, StoredArtifact, StoredWriter
from wrpo_engine.artifacts.checks import address, read_manifest
from wrpo_engine.artifacts.manifest import MANIFEST_NAME, FileEntry, InputEntry, digest_of, sha256_of
from wrpo_engine.artifacts.parallel import in_parallel
from wrpo_engine.artifacts.store import Artifact, ArtifactWriter
from wrpo_engine.artifacts.verified import is_record, is_recorded, record
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import MissingInputError

__all__ = ["VolumeArtifact", "VolumeStore", "VolumeWriter", "address"]

T = TypeVar("T")
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
class VolumeArtifact(StoredArtifact):
    """A committed artifact in a directory."""

    large_at_once: ClassVar[int] = 8

    def _place(self, name: str) -> str:
        return str(self.directory / name)

    def _sizes(self) -> Mapping[str, int]:
        sizes: dict[str, int] = {}
        for name in self.files():
            with contextlib.suppress(FileNotFoundError):
                sizes[name] = _fresh((self.directory / name).stat).st_size
        return sizes

    def _verify(self, entry: FileEntry) -> None:
        path = self.directory / entry.name
        try:
            found = _fresh(path.stat)
        except FileNotFoundError:
            raise self._missing(entry) from None
        self._check_size(entry, found.st_size)
        is_large = entry.size > SMALL_BYTES
        if is_large and is_recorded(self.directory, entry, found):
            return
        self._check_digest(entry, _fresh(lambda: sha256_of(path)))
        if is_large and _fresh(path.stat).st_mtime_ns == found.st_mtime_ns:
            record(self.directory, entry, found)


@dataclass
class VolumeWriter(StoredWriter):
    """The output of the running stage; its work directory is the final directory."""

    def begin(self) -> None:
        """Detect a volume that is not writable; a full one is detected by writing."""
        place = self.directory
        while not place.exists() and place != place.parent:
            place = place.parent
        if not os.access(place, os.W_OK):
            number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), str(place))

    def _is_committed(self) -> bool:
        return (self.directory / MANIFEST_NAME).exists()

    def _place(self, temporary: Path, name: str, *, replace: bool, sha256: str | None = None) -> None:
        final = self.directory / name
        _sync(temporary)
        # Neither a link nor a rename changes size and time.
        found = temporary.stat()
        if replace:
            temporary.replace(final)
        elif not _link_or_rename(temporary, final):
            self._log_loss(name)
            sha256 = None
        _sync(final.parent)
        if sha256 is not None:
            self._record(FileEntry(name=name, size=found.st_size, sha256=sha256), found)

    def _record(self, entry: FileEntry, found: os.stat_result) -> None:
        if entry.size > SMALL_BYTES:
            record(self.directory, entry, found)

    def published(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all published files that start with `prefix`, of all attempts and pods."""
        # By listing, not by name: a client may have cached that a file is absent.
        names = (path.relative_to(self.directory).as_posix() for path in _files_below(self.directory))
        return sorted(
            name
            for name in names
            if name.startswith(prefix) and TEMPORARY not in name and name != MANIFEST_NAME and not is_record(name)
        )

    def fetch(self, name: str) -> Path:
        """Return the path of a published file; MissingInputError if there is none."""
        path = self.directory / name
        if not path.is_file():
            raise MissingInputError(
                f"file {name} of the unfinished artifact {address(self.ref)} does not exist",
                hint="Another pod may have removed it; the next attempt looks again.",
            )
        return path

    def fetch_all(self, names: Sequence[str]) -> list[Path]:
        """Return the paths of many published files, in their order."""
        return [self.fetch(name) for name in names]

    def discard(self, prefix: str) -> None:
        """Remove the published files that start with `prefix`, and directories that become empty."""
        for name in self.published(prefix):
            (self.directory / name).unlink(missing_ok=True)
        # An empty directory would look like an artifact.
        for path in sorted(self.directory.rglob("*"), reverse=True):
            if path.is_dir() and path.relative_to(self.directory).as_posix().startswith(prefix.rstrip("/")):
                with contextlib.suppress(OSError):
                    path.rmdir()

    def _read(self) -> VolumeArtifact | None:
        return _read(self.ref, self.directory)

    def _entries(self, names: Sequence[str], rows: Mapping[str, int], sha256: Mapping[str, str]) -> list[FileEntry]:
        return in_parallel(
            lambda name: self._entry(name, rows.get(name), sha256.get(name)), names, threads=AT_ONCE, name="commit"
        )

    def _entry(self, name: str, rows: int | None, sha256: str | None) -> FileEntry:
        path = self.directory / name
        _fresh(lambda: _sync(path))
        _sync(path.parent)
        found = path.stat()
        if sha256 is not None:
            return FileEntry(name=name, size=found.st_size, sha256=sha256, rows=rows)
        digest = _fresh(lambda: sha256_of(path))
        entry = FileEntry(name=name, size=path.stat().st_size, sha256=digest, rows=rows)
        if (found.st_size, found.st_mtime_ns) == (entry.size, path.stat().st_mtime_ns):
            self._record(entry, found)
        return entry

    def _after_commit(self) -> None:
        """Remove leftovers of killed attempts; younger files may be another writer's."""
        before = self.now().timestamp() - _LEFTOVER_AGE_S
        for path in _files_below(self.directory):
            with contextlib.suppress(OSError):
                if path.name.startswith(TEMPORARY) and path.stat().st_mtime < before:
                    path.unlink()

    def _put_manifest(self, content: bytes) -> None:
        final = self.directory / MANIFEST_NAME
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{MANIFEST_NAME}")
        try:
            temporary.write_bytes(content)
            _sync(temporary)
            _link_or_rename(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(self.directory)


def _files_below(directory: Path) -> Iterator[Path]:
    """Yield all files; directories that vanish meanwhile are skipped."""
    for place, _, names in os.walk(directory):
        yield from (Path(place) / name for name in names)


def _link_or_rename(temporary: Path, final: Path) -> bool:
    """Make `final` appear with its whole content unless it is there: the first of two writers wins.

    Returns whether it is ours.
    """
    try:
        os.link(temporary, final)
    except FileExistsError:
        # A lost reply: the client sent the request again and found its own link.
        return final.samefile(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # File systems without hard links: of writers at the same moment the last one wins.
        if final.exists():
            return False
        temporary.replace(final)
    return True


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
        """Path of the root."""
        return str(self.root)

    def local_copy(
        self,
        below: str,
        only: Callable[[str], bool] | None = None,  # noqa: ARG002 (it is all local already)
    ) -> Path:
        """Return the path of `below` on the volume; nothing is copied."""
        return self.root / below

    def remote(self, below: str) -> None:
        """Return None: the files are local."""

    def open(self, ref: ArtifactRef) -> Artifact | None:
        """Return the committed artifact, or None if there is no manifest."""
        return _read(ref, self._directory(ref))

    def writer(
        self, ref: ArtifactRef, *, config: Mapping[str, Any], inputs: Mapping[str, InputEntry]
    ) -> ArtifactWriter:
        """Return the writer of an artifact; it creates no directory before the first file is published."""
        return VolumeWriter(ref, self._directory(ref), config, inputs, self.now)

    def _directory(self, ref: ArtifactRef) -> Path:
        return self.root / ref.stage / ref.hash
