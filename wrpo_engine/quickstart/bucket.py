"""Store of assets in a bucket: each is built in a local directory, then uploaded, its record last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wrpo_engine.artifacts.manifest import digest_of, sha256_of
from wrpo_engine.artifacts.s3_client import S3Bucket
from wrpo_engine.artifacts.transfer import Version, download, upload
from wrpo_engine.errors import DataError
from wrpo_engine.quickstart.store import RECORD_NAME, AssetStore, Recipe, is_complete


@dataclass
class BucketAssets:
    """The prefix of a bucket. A killed build leaves no record, so nothing that looks finished."""

    bucket: S3Bucket
    local: AssetStore
    """Where assets are made; may be empty at any start."""
    _here: set[str] = field(default_factory=set)

    @property
    def root(self) -> Path:
        """The local directory in which assets are built."""
        return self.local.root

    @property
    def location(self) -> str:
        """URI of the storage root."""
        return self.bucket.root_uri

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:  # noqa: ARG002 - it never waits
        """Hold nothing: two processes that make the same asset upload the same bytes."""
        yield

    def is_current(self, name: str, recipe: Recipe) -> bool:
        """Return whether the bucket has the asset, by this recipe, with every file at its recorded size."""
        record = self.bucket.read(f"{name}/{RECORD_NAME}")
        if record is None:
            return False
        sizes = {entry.key.removeprefix(f"{name}/"): entry.size for entry in self.bucket.listing(f"{name}/")}
        return is_complete(record, recipe, sizes.get)

    def provide(self, name: str) -> None:
        """Download an asset that an earlier process made."""
        if name in self._here:
            return
        record = json.loads(self.bucket.read(f"{name}/{RECORD_NAME}") or b'{"files": []}')
        found = {entry.key: entry for entry in self.bucket.listing(f"{name}/")}
        for file in record["files"]:
            key = f"{name}/{file['name']}"
            if key in found:
                download(self.bucket, key, self.root / key, Version(found[key].size, found[key].etag))
            if key not in found or sha256_of(self.root / key) != file["sha256"]:
                raise DataError(
                    f"{self.bucket.uri(key)} differs from its {RECORD_NAME}",
                    code="ArtifactDamaged",
                    hint=f"Remove {self.bucket.uri(name)} from the bucket: the next run rebuilds it.",
                )
        self._here.add(name)

    def make(self, name: str, recipe: Recipe, build: Callable[[Path], None]) -> Path:
        """Build the asset locally, upload its files, then its record; return its local directory."""
        final = self.local.make(name, recipe, build)
        self.bucket.delete([entry.key for entry in self.bucket.listing(f"{name}/")])
        for file in self.local.read_record(name)["files"]:
            key = f"{name}/{file['name']}"
            upload(self.bucket, self.root / key, key, sha256=file["sha256"])
        self.bucket.put(f"{name}/{RECORD_NAME}", (final / RECORD_NAME).read_bytes())
        self._here.add(name)
        return final

    def write(self, name: str, text: str) -> None:
        """Upload a file where it is missing or differs."""
        content = text.encode()
        digest = digest_of(content)
        stat = self.bucket.stat(name)
        if stat is None or stat.sha256 != digest:
            self.bucket.put(name, content, sha256=digest)
