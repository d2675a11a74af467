"""Base classes of artifacts and their writers; each store adds how bytes are written and read."""

from __future__ import annotations

import contextlib
import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from wrpo_engine import __version__
from wrpo_engine.artifacts.checks import address, damaged, require_finite, unknown_file
from wrpo_engine.artifacts.manifest import FileEntry, InputEntry, Manifest
from wrpo_engine.artifacts.parallel import in_parallel
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import AlreadyCommitted, DataError

log = logging.getLogger("wrpo_engine")

TEMPORARY = ".tmp-"
AT_ONCE = 16
"""Small files that are fetched together; each takes a block of memory."""
SMALL_BYTES = 16 << 20


@dataclass
class StoredArtifact(ABC):
    """A committed artifact, for reading."""

    ref: ArtifactRef
    manifest: Manifest
    digest: str
    directory: Path
    large_at_once: ClassVar[int] = 1
    """Large files that are fetched and verified at a time."""
    _verified: set[str] = field(default_factory=set, init=False)

    @abstractmethod
    def _place(self, name: str) -> str:
        """Return the location of the file in the store, for messages."""

    @abstractmethod
    def _sizes(self) -> Mapping[str, int]:
        """Return the sizes of the existing files."""

    @abstractmethod
    def _verify(self, entry: FileEntry) -> None:
        """Fetch the file unless it is local, and compare it with the manifest."""

    @cached_property
    def _by_name(self) -> Mapping[str, FileEntry]:
        return {entry.name: entry for entry in self.manifest.files}

    def file(self, name: str) -> Path:
        """Return the local path of a file, verified on first use; DataError names it if altered or missing."""
        entry = self._by_name.get(name)
        if entry is None:
            raise unknown_file(self.ref, name, self.files())
        if name not in self._verified:
            self._verify(entry)
            self._verified.add(name)
        return self.directory / name

    def fetch_all(self, names: Sequence[str]) -> list[Path]:
        """Return the local paths of many files as `file` does, in their order; several are verified at a time."""
        known = [name for name in names if name in self._by_name]
        large = [name for name in known if self._by_name[name].size > SMALL_BYTES]
        in_parallel(self.file, [name for name in known if name not in large], threads=AT_ONCE, name="fetch")
        in_parallel(self.file, large, threads=self.large_at_once, name="fetch")
        return [self.file(name) for name in names]

    def files(self, prefix: str = "") -> list[str]:
        """Return the names of the files, in the manifest's order, that start with `prefix`."""
        return [entry.name for entry in self.manifest.files if entry.name.startswith(prefix)]

    def check_sizes(self) -> None:
        """Find missing and truncated files without reading them."""
        sizes = self._sizes()
        for entry in self.manifest.files:
            self._check_size(entry, sizes.get(entry.name))

    def _missing(self, entry: FileEntry) -> DataError:
        return damaged(self._place(entry.name), self.ref, "is missing")

    def _check_size(self, entry: FileEntry, size: int | None) -> None:
        if size is None:
            raise self._missing(entry)
        if size != entry.size:
            what = f"has {size} bytes where the manifest says {entry.size}"
            raise damaged(self._place(entry.name), self.ref, what)

    def _check_digest(self, entry: FileEntry, sha256: str) -> None:
        if sha256 != entry.sha256:
            raise damaged(self._place(entry.name), self.ref, "was altered: its sha256 is not the manifest's")


@dataclass
class StoredWriter(ABC):
    """The output of the running stage."""

    ref: ArtifactRef
    directory: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, InputEntry]
    now: Callable[[], datetime]

    @abstractmethod
    def _is_committed(self) -> bool:
        """Return whether the manifest exists."""

    @abstractmethod
    def _place(self, temporary: Path, name: str, *, replace: bool, sha256: str | None = None) -> None:
        """Make a local file appear as `name`, here and in the store, unless one exists and is not replaced."""

    @abstractmethod
    def _read(self) -> StoredArtifact | None: ...

    @abstractmethod
    def _entries(self, names: Sequence[str], rows: Mapping[str, int], sha256: Mapping[str, str]) -> list[FileEntry]:
        """Return the manifest's entries; make files durable that the stage wrote without `publish`."""

    @abstractmethod
    def _put_manifest(self, content: bytes) -> None:
        """Create the manifest atomically, unless one exists."""

    @abstractmethod
    def _after_commit(self) -> None: ...

    def _named_errors(self) -> contextlib.AbstractContextManager[None]:
        """Context in which local files are written."""
        return contextlib.nullcontext()

    def publish(
        self, name: str, write: Callable[[Path], object], *, replace: bool = False, sha256: str | None = None
    ) -> Path:
        """Let `write` fill a temporary file, then make it appear as `name`; see `ArtifactWriter.publish`."""
        final = self.directory / name
        # The suffix stays the name's: writers choose formats by it. The uuid keeps two processes apart.
        temporary = final.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{final.name}")
        try:
            with self._named_errors():
                final.parent.mkdir(parents=True, exist_ok=True)
                write(temporary)
            self._refuse_if_committed(name)
            self._place(temporary, name, replace=replace, sha256=sha256)
        finally:
            temporary.unlink(missing_ok=True)
        return final

    def _refuse_if_committed(self, name: str) -> None:
        """Prevent a pod that was presumed dead from changing a committed artifact."""
        if self._is_committed():
            raise AlreadyCommitted(f"another writer has committed {address(self.ref)}; {name} is not published")

    def _log_loss(self, name: str) -> None:
        log.info("another writer has published %s of %s before; its content stays", name, address(self.ref))

    def committed(self) -> StoredArtifact | None:
        """Return the artifact if it exists; DataError if its manifest or a file's size is wrong."""
        artifact = self._read()
        if artifact is not None:
            artifact.check_sizes()
        return artifact

    def commit(
        self,
        *,
        files: Iterable[str],
        rows: Mapping[str, int] | None = None,
        sha256: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> StoredArtifact:
        """Write the manifest, last and atomically; see `ArtifactWriter.commit`."""
        if (existing := self.committed()) is not None:
            return existing
        require_finite(self.ref, metrics)
        # An AlreadyCommitted of a file that only now becomes durable means that the other's manifest is valid.
        with contextlib.suppress(AlreadyCommitted):
            manifest = Manifest(
                stage=self.ref.stage,
                hash=self.ref.hash,
                config=dict(self.config),
                inputs=dict(self.inputs),
                files=list(self._entries(sorted(set(files)), rows or {}, sha256 or {})),
                metrics=dict(sorted((metrics or {}).items())),
                details=dict(details or {}),
                engine_version=__version__,
                created_at=self.now(),
            )
            self._put_manifest(manifest.to_bytes())
        self._after_commit()
        artifact = self._read()
        assert artifact is not None
        return artifact
