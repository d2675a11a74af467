"""Artifacts in a bucket: the same guarantees as on a volume, with a conditional put instead of link and rename.

Files are objects at `<prefix>/<stage>/<hash>/<name>`; each carries the sha256 of its content. Files are put only where
there is none, and so is the manifest, last: of two writers, the second returns the artifact of the first. Local copies
are in a cache that is empty in a new pod.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from wrpo_engine import __version__
from wrpo_engine.artifacts.base import AT_ONCE, SMALL_BYTES, StoredArtifact, StoredWriter
from wrpo_engine.artifacts.cache import LocalCache
from wrpo_engine.artifacts.checks import address, damaged, read_manifest
from wrpo_engine.artifacts.manifest import MANIFEST_NAME, FileEntry, InputEntry, digest_of, sha256_of
from wrpo_engine.artifacts.parallel import in_parallel
from wrpo_engine.artifacts.s3_client import (
    ConditionFailed,
    Listed,
    S3Address,
    S3Bucket,
    Stat,
    UnsupportedConditionError,
)
from wrpo_engine.artifacts.s3_remote import BucketFiles
from wrpo_engine.artifacts.store import Artifact, ArtifactWriter
from wrpo_engine.artifacts.transfer import Version, download, download_whole, upload, upload_first
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.storage import StorageField
from wrpo_engine.errors import ConfigError, DataError, MissingInputError, StorageError, WrpoError

log = logging.getLogger("wrpo_engine")

STARTED_NAME = ".started"
"""Written before any work, to detect missing permissions; removed by the commit."""


@dataclass(frozen=True)
class Copies:
    """The bucket and its local copies."""

    bucket: S3Bucket
    cache: LocalCache

    @classmethod
    def connect(
        cls, storage: S3Address, environ: Mapping[str, str], *, is_stopping: Callable[[], bool] = lambda: False
    ) -> Copies:
        """Return the copies after one request, which detects wrong credentials and missing buckets before any work."""
        bucket = S3Bucket.open(storage, environ, is_stopping)
        bucket.check()
        return cls(bucket, LocalCache.of(f"{storage.endpoint or ''} {storage.uri.rstrip('/')}", environ))

    def bring(self, name: str, *, size: int, etag: str) -> str:
        """Update the local copy to the object of this size and ETag; return its sha256. The caller holds the lock."""
        known = self.cache.known(name)
        if known is not None and known.etag == etag:
            return known.sha256
        partial = self.cache.partial(name)
        path = self.cache.path(name)
        with self.cache.named_errors():
            download(self.bucket, name, partial, Version(size, etag))
            digest = sha256_of(partial)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        self.cache.remember(name, etag=etag, sha256=digest)
        return digest

    def bring_whole(self, name: str, *, size: int, etag: str | None = None) -> tuple[Stat | None, str]:
        """Bring a small object by one request; return what the server says of it, and the sha256 of what came.

        One of another size is not brought. Hold the file's lock.
        """
        partial, path = self.cache.partial(name), self.cache.path(name)
        with self.cache.named_errors():
            stat = download_whole(self.bucket, name, partial, size=size, etag=etag)
            if stat is None or stat.size != size:
                return stat, ""
            digest = sha256_of(partial)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        self.cache.remember(name, etag=stat.etag, sha256=digest)
        return stat, digest


@dataclass
class S3Artifact(StoredArtifact):
    """A committed artifact in a bucket."""

    copies: Copies

    def _full(self, name: str) -> str:
        return f"{address(self.ref)}/{name}"

    def _place(self, name: str) -> str:
        return self.copies.bucket.uri(self._full(name))

    def _sizes(self) -> Mapping[str, int]:
        base = self._full("")
        return {listed.key.removeprefix(base): listed.size for listed in self.copies.bucket.listing(base)}

    def _verify(self, entry: FileEntry) -> None:
        full = self._full(entry.name)
        with self.copies.cache.lock(full):
            if not self._is_here(full, entry):
                self._bring(full, entry)

    def _is_here(self, full: str, entry: FileEntry) -> bool:
        known = self.copies.cache.known(full)
        if known is not None:
            return known.sha256 == entry.sha256
        path = self.copies.cache.path(full)
        # Files that this pod wrote itself and never fetched.
        return path.is_file() and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256

    def _bring(self, full: str, entry: FileEntry) -> None:
        if entry.size <= SMALL_BYTES:
            stat, digest = self.copies.bring_whole(full, size=entry.size)
            self._check_size(entry, None if stat is None else stat.size)
        else:
            stat = self.copies.bucket.stat(full)
            self._check_size(entry, None if stat is None else stat.size)
            assert stat is not None
            digest = self.copies.bring(full, size=stat.size, etag=stat.etag)
        if digest != entry.sha256:
            self.copies.cache.forget(full)
        self._check_digest(entry, digest)


@dataclass
class S3Writer(StoredWriter):
    """The output of the running stage. Files that it writes into `directory` itself are uploaded by the commit."""

    copies: Copies

    def begin(self) -> None:
        """Write a marker object, which detects missing permissions, and create the local directory."""
        self.copies.bucket.put(
            self._full(STARTED_NAME), json.dumps({"at": self.now().isoformat(), "engine": __version__}).encode()
        )
        with self.copies.cache.named_errors():
            self.directory.mkdir(parents=True, exist_ok=True)

    def published(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all published objects that start with `prefix`, of all attempts and pods."""
        return sorted(name for name in self._listed(prefix) if name not in {MANIFEST_NAME, STARTED_NAME})

    def fetch(self, name: str) -> Path:
        """Return the local copy of a published object; MissingInputError if there is none."""
        full = self._full(name)
        with self.copies.cache.lock(full):
            stat = self.copies.bucket.stat(full)
            if stat is None:
                raise self._missing(full)
            self._bring(full, stat)
        return self.directory / name

    def fetch_all(self, names: Sequence[str]) -> list[Path]:
        """Return the local copies of many published objects, in their order; small ones are fetched together."""
        listed = self._listed()

        def fetch(name: str) -> Path:
            found, full = listed.get(name), self._full(name)
            if found is None:
                raise self._missing(full)
            with self.copies.cache.lock(full):
                known = self.copies.cache.known(full)
                if known is None or known.etag != found.etag:
                    stat, digest = self.copies.bring_whole(full, size=found.size, etag=found.etag)
                    if stat is None:
                        raise self._missing(full)
                    self._check_recorded(full, stat, digest)
            return self.directory / name

        large = {name for name, found in listed.items() if found.size > SMALL_BYTES}
        small = [name for name in names if name not in large]
        paths = dict(zip(small, in_parallel(fetch, small, threads=AT_ONCE, name="fetch"), strict=True))
        return [paths[name] if name in paths else self.fetch(name) for name in names]

    def _missing(self, full: str) -> MissingInputError:
        return MissingInputError(
            f"{self.copies.bucket.uri(full)} of the unfinished artifact {address(self.ref)} does not exist",
            hint="Another pod may have removed it; the next attempt looks again.",
        )

    def discard(self, prefix: str) -> None:
        """Remove the published objects that start with `prefix`, and their local copies."""
        names = self.published(prefix)
        self.copies.bucket.delete([self._full(name) for name in names])
        for name in names:
            self.copies.cache.forget(self._full(name))

    def _listed(self, prefix: str = "") -> dict[str, Listed]:
        base = self._full("")
        return {listed.key.removeprefix(base): listed for listed in self.copies.bucket.listing(base + prefix)}

    def _named_errors(self) -> contextlib.AbstractContextManager[None]:
        return self.copies.cache.named_errors()

    def _is_committed(self) -> bool:
        return self.copies.bucket.stat(self._full(MANIFEST_NAME)) is not None

    def _place(self, temporary: Path, name: str, *, replace: bool, sha256: str | None = None) -> None:
        full, final = self._full(name), self.directory / name
        digest, size = sha256 or sha256_of(temporary), temporary.stat().st_size
        is_ours = True
        if replace:
            upload(self.copies.bucket, temporary, full, sha256=digest)
        else:
            is_ours = upload_first(self.copies.bucket, temporary, full, sha256=digest)
        stat = self.copies.bucket.stat(full)
        if stat is None or (is_ours and stat.size != size):
            found = "nothing" if stat is None else f"{stat.size} bytes"
            raise StorageError(
                f"{size} bytes were written to {self.copies.bucket.uri(full)}, but {found} are there",
                code="StorageUnavailable",
                field=StorageField.S3,
                hint="Another writer replaced it, or the server loses writes: see its log.",
            )
        with self.copies.cache.lock(full):
            if not is_ours:
                self._log_loss(name)
                self._bring(full, stat)
                return
            if temporary != final:
                temporary.replace(final)
            self.copies.cache.remember(full, etag=stat.etag, sha256=digest)

    def _read(self) -> S3Artifact | None:
        return _read(self.ref, self.copies)

    def _put_manifest(self, content: bytes) -> None:
        full = self._full(MANIFEST_NAME)
        try:
            self.copies.bucket.put(full, content, only_if_absent=True)
        except ConditionFailed:
            log.info("another writer has committed %s; its manifest stays", address(self.ref))
        except UnsupportedConditionError:
            log.warning("the S3 server knows no conditional writes; two writers at once may replace each other's")
            if self.copies.bucket.stat(full) is None:
                self.copies.bucket.put(full, content)

    def _after_commit(self) -> None:
        try:
            self.copies.bucket.delete([self._full(STARTED_NAME)])
        except WrpoError as error:
            log.warning("%s", error)

    def _entries(self, names: Sequence[str], rows: Mapping[str, int], sha256: Mapping[str, str]) -> list[FileEntry]:
        listed = self._listed()
        entries = in_parallel(
            lambda name: self._entry(name, rows.get(name), listed.get(name)), names, threads=AT_ONCE, name="commit"
        )
        for entry in entries:
            if entry.sha256 != sha256.get(entry.name, entry.sha256):
                raise damaged(self.copies.bucket.uri(self._full(entry.name)), self.ref, "is not what was to be written")
        return entries

    def _entry(self, name: str, rows: int | None, listed: Listed | None) -> FileEntry:
        full, path = self._full(name), self.directory / name
        known = self.copies.cache.known(full)
        if known is not None and listed is not None and known.etag == listed.etag:
            return FileEntry(name=name, size=known.size, sha256=known.sha256, rows=rows)
        stat = self.copies.bucket.stat(full)
        if known is None and path.is_file():
            digest = sha256_of(path)
            if stat is None or stat.sha256 != digest:
                self._refuse_if_committed(name)
                self._place(path, name, replace=True)
            return FileEntry(name=name, size=path.stat().st_size, sha256=digest, rows=rows)
        if stat is None:
            raise MissingInputError(
                f"{self.copies.bucket.uri(full)} does not exist, so the artifact cannot be committed",
                hint="Something removed it while the stage ran; the next attempt recreates it.",
            )
        if stat.sha256 is None:
            with self.copies.cache.lock(full):
                return FileEntry(name=name, size=stat.size, sha256=self._bring(full, stat), rows=rows)
        return FileEntry(name=name, size=stat.size, sha256=stat.sha256, rows=rows)

    def _bring(self, full: str, stat: Stat) -> str:
        digest = self.copies.bring(full, size=stat.size, etag=stat.etag)
        self._check_recorded(full, stat, digest)
        return digest

    def _check_recorded(self, full: str, stat: Stat, digest: str) -> None:
        if stat.sha256 is not None and stat.sha256 != digest:
            self.copies.cache.forget(full)
            raise damaged(self.copies.bucket.uri(full), self.ref, "was altered: its sha256 is not the one recorded")

    def _full(self, name: str) -> str:
        return f"{address(self.ref)}/{name}"


@dataclass
class S3Store:
    """Artifacts below a prefix of a bucket."""

    copies: Copies
    now: Callable[[], datetime]

    @classmethod
    def connect(
        cls,
        storage: S3Address,
        environ: Mapping[str, str],
        now: Callable[[], datetime],
        *,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> S3Store:
        """Return the store after one request, see `Copies.connect`."""
        return cls(Copies.connect(storage, environ, is_stopping=is_stopping), now)

    @property
    def location(self) -> str:
        """URI of the storage root."""
        return self.copies.bucket.root_uri

    def local_copy(self, below: str, only: Callable[[str], bool] | None = None) -> Path:
        """Download what is at `below` and return its local path; see `ArtifactStore.local_copy`."""
        bucket, cache = self.copies.bucket, self.copies.cache
        below = below.strip("/")
        if not below or below == ".":
            raise ConfigError(
                "storage reference", "storage://", "the whole storage is not read", "Name a directory in it."
            )
        path = cache.path(below)
        found = [entry for entry in bucket.listing(below) if entry.key == below or entry.key.startswith(f"{below}/")]
        wanted = {
            entry.key: entry
            for entry in found
            # Consoles mark directories by empty objects.
            if not entry.key.endswith("/")
            and (entry.key == below or only is None or only(entry.key.removeprefix(f"{below}/")))
        }
        for key, entry in wanted.items():
            if ".." in Path(key).parts:
                raise DataError(f"{bucket.uri(key)} has a name that leads out of its directory", code="ArtifactDamaged")
            with cache.lock(key):
                self.copies.bring(key, size=entry.size, etag=entry.etag)
        for stale in path.rglob("*") if path.is_dir() else ():
            # Files that were removed from the bucket must not remain here.
            if stale.is_file() and stale.relative_to(cache.files).as_posix() not in wanted:
                stale.unlink(missing_ok=True)
        return path

    def remote(self, below: str) -> BucketFiles:
        """Return a reader of parts of the objects in the directory `below`."""
        return BucketFiles(self.copies.bucket, below)

    def open(self, ref: ArtifactRef) -> Artifact | None:
        """Return the committed artifact, or None if there is no manifest."""
        return _read(ref, self.copies)

    def writer(
        self, ref: ArtifactRef, *, config: Mapping[str, Any], inputs: Mapping[str, InputEntry]
    ) -> ArtifactWriter:
        """Return the writer of an artifact; it writes nothing before `begin`."""
        directory = self.copies.cache.path(address(ref))
        return S3Writer(ref, directory, config, inputs, self.now, self.copies)


def _read(ref: ArtifactRef, copies: Copies) -> S3Artifact | None:
    name = f"{address(ref)}/{MANIFEST_NAME}"
    content = copies.bucket.read(name)
    if content is None:
        return None
    manifest = read_manifest(content, ref, copies.bucket.uri(name))
    return S3Artifact(ref, manifest, digest_of(content), copies.cache.path(address(ref)), copies)
