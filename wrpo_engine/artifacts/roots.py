"""The root of a storage before it is opened: one class per kind, found by the kind or by the scheme of a URI.

A further kind of storage is a member of the union `Storage`, a class here, and an entry in `_SCHEMES`; code that
distinguishes the kinds matches `StorageRoot`, so that the type checker names the places that miss one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Never, TypeAlias

from wrpo_engine.artifacts.inventory import Inventory, S3Inventory, VolumeInventory
from wrpo_engine.artifacts.s3 import Copies, S3Store
from wrpo_engine.artifacts.s3_client import S3Address, S3Bucket, S3Location
from wrpo_engine.artifacts.store import ArtifactStore
from wrpo_engine.artifacts.volume import VolumeStore
from wrpo_engine.config import S3Storage, Storage, VolumeStorage
from wrpo_engine.contract.storage import DEFAULT_VOLUME_ROOT, StorageField
from wrpo_engine.errors import ConfigError, StorageError, UsageError


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class DirectoryRoot:
    """A directory of this machine."""

    path: Path

    @property
    def location(self) -> str:
        """Path of the directory."""
        return str(self.path)

    def store(
        self,
        clock: Callable[[], datetime],
        *,
        is_stopping: Callable[[], bool] = _never,  # noqa: ARG002 - nothing here waits
    ) -> ArtifactStore:
        """Return the store of artifacts in the directory."""
        return VolumeStore(self.path, clock)

    def inventory(self) -> Inventory:
        """Return the inventory of the directory."""
        return VolumeInventory(self.path)


@dataclass(frozen=True, slots=True)
class BucketRoot:
    """A prefix of an S3 bucket, with credentials from the environment."""

    address: S3Address
    environ: Mapping[str, str]

    @property
    def location(self) -> str:
        """URI of the prefix, without a slash at the end."""
        return self.address.uri.rstrip("/")

    def bucket(self) -> S3Bucket:
        """Return the bucket after one request, which detects wrong credentials and missing buckets before any work."""
        bucket = self._unchecked()
        bucket.check()
        return bucket

    def copies(self) -> Copies:
        """Return the bucket with its local cache."""
        return Copies.connect(self.address, self.environ)

    def store(self, clock: Callable[[], datetime], *, is_stopping: Callable[[], bool] = _never) -> ArtifactStore:
        """Return the store of artifacts below the prefix, connected by one request."""
        return S3Store.connect(self.address, self.environ, clock, is_stopping=is_stopping)

    def inventory(self) -> Inventory:
        """Return the inventory of the prefix, connected by one request."""
        return S3Inventory(self.bucket())

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object, or None if it does not exist."""
        return self._unchecked().read(name)

    def create(self) -> None:
        """Create the bucket unless it exists, and wait until it is writable."""
        bucket = self._unchecked()
        known = bucket.client.exceptions

        def create() -> Any:
            try:
                return bucket.client.create_bucket(Bucket=bucket.bucket)
            except (known.BucketAlreadyOwnedByYou, known.BucketAlreadyExists):
                return None

        bucket.call(f"make the bucket {bucket.bucket}", create)
        # A server that has just started may accept requests before it can store anything.
        bucket.put(".ready", b"")
        bucket.delete([".ready"])

    def _unchecked(self) -> S3Bucket:
        return S3Bucket.open(self.address, self.environ, _never)


StorageRoot: TypeAlias = DirectoryRoot | BucketRoot


def root_of(storage: Storage, environ: Mapping[str, str]) -> StorageRoot:
    """Return the root of the storage that a stage is configured with; one that is not mounted is an error."""
    match storage:
        case VolumeStorage(path=path):
            return DirectoryRoot(_mount(environ) / path)
        case S3Storage():
            return BucketRoot(storage, environ)
        case _:
            raise unsupported(storage)


def unsupported(storage: Never) -> ConfigError:
    """Return the error of a kind of storage that is not handled; the type checker refuses a call that can happen."""
    kind = getattr(storage, "kind", type(storage).__name__)
    return ConfigError(
        StorageField.STORAGE,
        kind,
        "this version of the engine knows no such kind of storage",
        "Use volume or s3, or the engine's image of the operator's version.",
        code="StorageUnknown",
    )


def _mount(environ: Mapping[str, str]) -> Path:
    mount = Path(environ.get("WRPO_VOLUME_ROOT", DEFAULT_VOLUME_ROOT))
    if not mount.is_dir():
        # Creating it would write results where no one finds them.
        raise StorageError(
            f"there is no directory {mount}, where the storage volume should be mounted",
            code="StorageMissing",
            field=StorageField.STORAGE,
            hint="Mount the volume there, or set WRPO_VOLUME_ROOT to where it is mounted.",
        )
    return mount


@dataclass(frozen=True, slots=True)
class S3Server:
    """The server of a bucket that is named by its URI alone."""

    endpoint: str | None = None
    region: str | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> S3Server:
        """Return the server that the environment names, as for all AWS tools."""
        return cls(
            endpoint=environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"),
            region=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
        )


def _bucket_at(uri: str, environ: Mapping[str, str], server: S3Server | None) -> BucketRoot:
    if not uri.partition("://")[2].partition("/")[0]:
        raise UsageError(f"{uri} names no bucket", hint="Write s3://BUCKET/PREFIX.")
    chosen = server or S3Server.of(environ)
    return BucketRoot(S3Location(uri=uri, endpoint=chosen.endpoint, region=chosen.region), environ)


_SCHEMES: Mapping[str, Callable[[str, Mapping[str, str], S3Server | None], StorageRoot]] = {"s3": _bucket_at}
"""URI scheme -> how its root is found; without a scheme it is a directory."""
REMOTE = "|".join(_SCHEMES)
"""The schemes as alternatives of a regular expression."""


def scheme_of(location: str) -> str | None:
    """Return the scheme if `location` is a URI of a kind of storage, else None."""
    scheme, mark, _ = location.partition("://")
    return scheme if mark and scheme in _SCHEMES else None


def root_at(location: str, environ: Mapping[str, str], *, server: S3Server | None = None) -> StorageRoot:
    """Return the root that a user names: a directory or the URI of a kind of storage; UsageError for other URIs.

    `server` is that of a bucket; None: the one that the environment names.
    """
    scheme = scheme_of(location)
    if scheme is not None:
        return _SCHEMES[scheme](location, environ, server)
    refuse_scheme(location)
    return DirectoryRoot(Path(location))


def refuse_scheme(location: str) -> None:
    """Refuse an invalid address, which would otherwise become a local directory of that name."""
    if "://" in location:
        scheme = location.partition("://")[0]
        raise UsageError(
            f"{location}: nothing is written to {scheme}://", hint="Write a path, s3://BUCKET/PATH or storage://PATH."
        )
