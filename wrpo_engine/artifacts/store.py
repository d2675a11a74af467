"""Interface of an artifact store, independent of the storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from wrpo_engine.artifacts.manifest import InputEntry, Manifest
from wrpo_engine.config import ArtifactRef


class Artifact(Protocol):
    """A committed artifact, for reading."""

    @property
    def ref(self) -> ArtifactRef:
        """Address of the artifact."""
        ...

    @property
    def manifest(self) -> Manifest:
        """Content of its manifest.json."""
        ...

    @property
    def digest(self) -> str:
        """Sha256 of manifest.json."""
        ...

    @property
    def directory(self) -> Path:
        """Local directory of the files. Only files returned by `file` are verified."""
        ...

    def file(self, name: str) -> Path:
        """Return the local path of a file, verified on first use; DataError names it if altered or missing."""
        ...

    def fetch_all(self, names: Sequence[str]) -> list[Path]:
        """Return the local paths of many files as `file` does, in their order; small ones are fetched together."""
        ...

    def files(self, prefix: str = "") -> list[str]:
        """Return the names of the files, in the manifest's order, that start with `prefix`."""
        ...


class ArtifactWriter(Protocol):
    """The stage's own output while it is being written. Only published files survive a kill and are visible to other
    pods. `directory` is a place for local files;
    on a volume it is the artifact's own directory, on S3 a cache that a new pod finds empty.
    """

    @property
    def ref(self) -> ArtifactRef:
        """Address of the artifact."""
        ...

    @property
    def directory(self) -> Path:
        """The local directory of the output."""
        ...

    def begin(self) -> None:
        """Fail before the work starts if nothing could be published."""
        ...

    def publish(
        self, name: str, write: Callable[[Path], object], *, replace: bool = False, sha256: str | None = None
    ) -> Path:
        """Let `write` fill a temporary file, then make it appear as `name` at once and durably; return its local path.

        Of several writers of one name the first wins, as two need not write the same bytes; the path holds the store's
        content. With `replace` the last one wins, for files that are rewritten on purpose. AlreadyCommitted, and
        nothing is published, once there is a manifest.

        `sha256` is the digest of what `write` leaves, if the caller has verified it: a large file is then not
        read again to verify it, unless it changes.
        """
        ...

    def published(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all published files that start with `prefix`, of all attempts and pods.

        One that looks after it published sees everything that was published before.
        """
        ...

    def fetch(self, name: str) -> Path:
        """Return the local path of a published file; MissingInputError if there is none."""
        ...

    def fetch_all(self, names: Sequence[str]) -> list[Path]:
        """Return the local paths of many published files as `fetch` does, in their order; small ones come together."""
        ...

    def discard(self, prefix: str) -> None:
        """Remove the published files that start with `prefix`, here and in the store; having none is not an error."""
        ...

    def committed(self) -> Artifact | None:
        """Return the artifact if it exists; DataError if its manifest or a file is damaged."""
        ...

    def commit(
        self,
        *,
        files: Iterable[str],
        rows: Mapping[str, int] | None = None,
        sha256: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Write the manifest, last and atomically. With two writers the first one's manifest stays.

        The entries describe the stored objects, even if another writer created them. `sha256` says of some files what
        they have to be, so that what was altered since is found by readers, and large files are not read once more.
        """
        ...


class RemoteFiles(Protocol):
    """Files of a directory that is not local, for reading parts of them. Several threads may use it."""

    def sizes(self) -> Mapping[str, int]:
        """Return name, relative to the directory, -> size in bytes of every file; empty if there is no directory."""
        ...

    def read(self, name: str, begin: int, end: int) -> bytes:
        """Return the bytes of a file from `begin` to before `end`, or to the end of the file if that is first."""
        ...


class ArtifactStore(Protocol):
    """Artifacts by address."""

    @property
    def location(self) -> str:
        """The directory or URI that `storage://` stands for, for messages."""
        ...

    def local_copy(self, below: str, only: Callable[[str], bool] | None = None) -> Path:
        """Return the local path of a file or directory at `below` the storage root; nothing there, no such path.

        With `only`, no other files of a directory are brought here; it gets their names relative to the directory.
        Processes of one machine may call it at the same time.
        """
        ...

    def remote(self, below: str) -> RemoteFiles | None:
        """Return a reader of parts of the files in the directory `below`; None if the storage is a local directory."""
        ...

    def open(self, ref: ArtifactRef) -> Artifact | None:
        """Return the committed artifact, or None if there is no manifest."""
        ...

    def writer(
        self, ref: ArtifactRef, *, config: Mapping[str, Any], inputs: Mapping[str, InputEntry]
    ) -> ArtifactWriter:
        """Return the writer of an artifact; it creates no directory before the first file is published."""
        ...
