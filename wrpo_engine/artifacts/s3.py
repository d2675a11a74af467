"""Artifacts in a bucket: the same promises as on a volume, with a conditional put in place of link and rename.

Files are objects at `<prefix>/<stage>/<hash>/<name>`; each carries the sha256 of its content. The manifest is put last
and only if there is none: of two writers one wins, and the other returns the winner's artifact. Local copies lie in a
cache that a new pod finds empty.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from wrpo_engine import __version__
from wrpo_engine.artifacts.cache import LocalCache
from wrpo_engine.artifacts.checks import address, damaged, make_manifest, read_manifest, require_finite, unknown_file
from wrpo_engine.artifacts.manifest import MANIFEST_NAME, FileEntry, InputEntry, Manifest, digest_of, sha256_of
from wrpo_engine.artifacts.s3_client import ConditionFailed, S3Bucket, Stat, UnsupportedConditionError
from wrpo_engine.artifacts.store import Artifact, ArtifactWriter
from wrpo_engine.artifacts.transfer import download, upload
from wrpo_engine.config import ArtifactRef, S3Storage
from wrpo_engine.errors import ConfigError, DataError, MissingInputError, StorageError, WrpoError

log = logging.getLogger("wrpo_engine")

STARTED_NAME = ".started"
"""Put before any work, to find missing rights; removed by the commit."""
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Copies:
    """The bucket and what of it is here."""

    bucket: S3Bucket
    cache: LocalCache

    def bring(self, name: str, *, size: int, etag: str) -> str:
        """Make the local copy be the object of this size and ETag; return its sha256. Hold the file's lock."""
        known = self.cache.known(name)
        if known is not None and known.etag == etag:
            return known.sha256
        partial = self.cache.partial(name)
        path = self.cache.path(name)
        with self.cache.named_errors():
            download(self.bucket, name, partial, size=size, etag=etag)
            digest = sha256_of(partial)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        self.cache.remember(name, etag=etag, sha256=digest)
        return digest


@dataclass
class S3Artifact:
    """A committed artifact in a bucket."""

    ref: ArtifactRef
    manifest: Manifest
    digest: str
    copies: Copies
    _verified: set[str] = field(default_factory=set)

    @property
    def directory(self) -> Path:
        return self.copies.cache.path(address(self.ref))

    def file(self, name: str) -> Path:
        entry = next((entry for entry in self.manifest.files if entry.name == name), None)
        if entry is None:
            raise unknown_file(self.ref, name, self.files())
        path = self.directory / name
        if name not in self._verified:
            full = f"{address(self.ref)}/{name}"
            with self.copies.cache.lock(full):
                if not self._is_here(full, entry):
                    self._bring(full, entry)
            self._verified.add(name)
        return path

    def files(self, prefix: str = "") -> list[str]:
        return [entry.name for entry in self.manifest.files if entry.name.startswith(prefix)]

    def check_sizes(self) -> None:
        """Find missing and truncated files by one listing."""
        base = f"{address(self.ref)}/"
        sizes = {listed.key: listed.size for listed in self.copies.bucket.listing(base)}
        for entry in self.manifest.files:
            self._check_size(base + entry.name, entry, sizes.get(base + entry.name))

    def _is_here(self, full: str, entry: FileEntry) -> bool:
        known = self.copies.cache.known(full)
        if known is not None:
            return known.sha256 == entry.sha256
        path = self.copies.cache.path(full)
        # What this pod wrote itself and never had to fetch.
        return path.is_file() and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256

    def _bring(self, full: str, entry: FileEntry) -> None:
        stat = self.copies.bucket.stat(full)
        self._check_size(full, entry, None if stat is None else stat.size)
        assert stat is not None
        if self.copies.bring(full, size=stat.size, etag=stat.etag) != entry.sha256:
            self.copies.cache.forget(full)
            raise damaged(self.copies.bucket.uri(full), self.ref, "was altered: its sha256 is not the manifest's")

    def _check_size(self, full: str, entry: FileEntry, size: int | None) -> None:
        uri = self.copies.bucket.uri(full)
        if size is None:
            raise damaged(uri, self.ref, "is missing")
        if size != entry.size:
            raise damaged(uri, self.ref, f"has {size} bytes where the manifest says {entry.size}")


@dataclass
class S3Writer:
    """The output of the running stage. Files that it writes into `directory` itself are uploaded by the commit."""

    ref: ArtifactRef
    copies: Copies
    config: Mapping[str, Any]
    inputs: Mapping[str, InputEntry]
    now: Callable[[], datetime]

    @property
    def directory(self) -> Path:
        return self.copies.cache.path(address(self.ref))

    def begin(self) -> None:
        self.copies.bucket.put(
            self._full(STARTED_NAME), json.dumps({"at": self.now().isoformat(), "engine": __version__}).encode()
        )
        with self.copies.cache.named_errors():
            self.directory.mkdir(parents=True, exist_ok=True)

    def publish(self, name: str, write: Callable[[Path], None]) -> Path:
        final = self.directory / name
        with self.copies.cache.named_errors():
            final.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays the name's: writers choose formats by it. The uuid keeps two processes apart.
        temporary = final.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{final.name}")
        try:
            with self.copies.cache.named_errors():
                write(temporary)
            self._send(temporary, name, keep_as=final)
        finally:
            temporary.unlink(missing_ok=True)
        return final

    def published(self, prefix: str = "") -> list[str]:
        base = self._full("")
        names = (listed.key.removeprefix(base) for listed in self.copies.bucket.listing(base + prefix))
        return sorted(name for name in names if name not in {MANIFEST_NAME, STARTED_NAME})

    def fetch(self, name: str) -> Path:
        full = self._full(name)
        with self.copies.cache.lock(full):
            stat = self.copies.bucket.stat(full)
            if stat is None:
                raise MissingInputError(
                    f"{self.copies.bucket.uri(full)} of the unfinished artifact {address(self.ref)} is not there",
                    hint="Another pod may have removed it; the next attempt looks again.",
                )
            self._bring(full, stat)
        return self.directory / name

    def discard(self, prefix: str) -> None:
        names = self.published(prefix)
        self.copies.bucket.delete([self._full(name) for name in names])
        for name in names:
            self.copies.cache.forget(self._full(name))

    def committed(self) -> Artifact | None:
        artifact = _read(self.ref, self.copies)
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
        self._put_manifest(manifest.to_bytes())
        artifact = _read(self.ref, self.copies)
        assert artifact is not None
        try:
            self.copies.bucket.delete([self._full(STARTED_NAME)])
        except WrpoError as error:
            log.warning("%s", error)
        return artifact

    def _put_manifest(self, content: bytes) -> None:
        full = self._full(MANIFEST_NAME)
        try:
            self.copies.bucket.put(full, content, only_if_absent=True)
        except ConditionFailed:
            log.info("another writer has committed %s; its manifest stays", address(self.ref))
        except UnsupportedConditionError:
            # As on file systems without hard links: a racing writer replaces a manifest of the same content.
            log.warning("the S3 server knows no conditional writes; two writers at once may replace each other's")
            if self.copies.bucket.stat(full) is None:
                self.copies.bucket.put(full, content)

    def _entry(self, name: str, rows: int | None) -> FileEntry:
        """Return a file's line in the manifest; one that the stage wrote only locally is uploaded first."""
        full, path = self._full(name), self.directory / name
        stat = self.copies.bucket.stat(full)
        known = self.copies.cache.known(full)
        if known is None and path.is_file():
            digest = sha256_of(path)
            if stat is None or stat.sha256 != digest:
                self._send(path, name, keep_as=path)
                stat = self.copies.bucket.stat(full)
            return FileEntry(name=name, size=path.stat().st_size, sha256=digest, rows=rows)
        if stat is None:
            raise MissingInputError(
                f"{self.copies.bucket.uri(full)} is not there, so the artifact cannot be committed",
                hint="Something removed it while the stage ran; the next attempt makes it again.",
            )
        if known is not None and known.etag == stat.etag:
            return FileEntry(name=name, size=stat.size, sha256=known.sha256, rows=rows)
        if stat.sha256 is None:
            with self.copies.cache.lock(full):
                return FileEntry(name=name, size=stat.size, sha256=self._bring(full, stat), rows=rows)
        return FileEntry(name=name, size=stat.size, sha256=stat.sha256, rows=rows)

    def _bring(self, full: str, stat: Stat) -> str:
        digest = self.copies.bring(full, size=stat.size, etag=stat.etag)
        if stat.sha256 is not None and stat.sha256 != digest:
            self.copies.cache.forget(full)
            raise damaged(self.copies.bucket.uri(full), self.ref, "was altered: its sha256 is not the one recorded")
        return digest

    def _send(self, path: Path, name: str, *, keep_as: Path) -> None:
        full = self._full(name)
        digest, size = sha256_of(path), path.stat().st_size
        if self.copies.bucket.stat(self._full(MANIFEST_NAME)) is not None:
            # A pod that was thought dead must not change what is committed.
            log.warning("%s was committed by another writer meanwhile; %s is not published", address(self.ref), name)
            if path != keep_as:
                path.replace(keep_as)
            return
        upload(self.copies.bucket, path, full, sha256=digest)
        stat = self.copies.bucket.stat(full)
        if stat is None or stat.size != size:
            found = "nothing" if stat is None else f"{stat.size} bytes"
            raise StorageError(
                f"{size} bytes were written to {self.copies.bucket.uri(full)}, but {found} are there",
                code="StorageUnavailable",
                field="storage.s3",
                hint="Another writer replaced it, or the server loses writes: see its log.",
            )
        with self.copies.cache.lock(full):
            if path != keep_as:
                path.replace(keep_as)
            self.copies.cache.remember(full, etag=stat.etag, sha256=digest)

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
        storage: S3Storage,
        environ: Mapping[str, str],
        now: Callable[[], datetime],
        *,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> S3Store:
        """Return the store after one request: wrong credentials and missing buckets are found before any work."""
        bucket = S3Bucket.open(storage, environ, is_stopping)
        bucket.check()
        return cls(Copies(bucket, LocalCache.of(storage, environ)), now)

    @property
    def location(self) -> str:
        return self.copies.bucket.root_uri

    def local_copy(self, below: str, only: Sequence[str] = ()) -> Path:
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
            if not entry.key.endswith("/") and (entry.key == below or not only or _matches(entry.key, only))
        }
        for key, entry in wanted.items():
            if ".." in Path(key).parts:
                raise DataError(f"{bucket.uri(key)} has a name that leads out of its directory", code="ArtifactDamaged")
            with cache.lock(key):
                self.copies.bring(key, size=entry.size, etag=entry.etag)
        for stale in path.rglob("*") if path.is_dir() else ():
            # What was removed from the bucket must not live on here.
            if stale.is_file() and stale.relative_to(cache.files).as_posix() not in wanted:
                stale.unlink(missing_ok=True)
        return path

    def open(self, ref: ArtifactRef) -> Artifact | None:
        return _read(ref, self.copies)

    def writer(
        self, ref: ArtifactRef, *, config: Mapping[str, Any], inputs: Mapping[str, InputEntry]
    ) -> ArtifactWriter:
        return S3Writer(ref, self.copies, config, inputs, self.now)


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)


def _read(ref: ArtifactRef, copies: Copies) -> S3Artifact | None:
    name = f"{address(ref)}/{MANIFEST_NAME}"
    content = copies.bucket.read(name)
    if content is None:
        return None
    return S3Artifact(ref, read_manifest(content, ref, copies.bucket.uri(name)), digest_of(content), copies)
