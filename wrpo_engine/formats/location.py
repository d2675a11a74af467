"""Where data lie, as users write it: a path, storage://PATH or an artifact's address below a storage, an s3:// URI."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from wrpo_engine.artifacts import Artifact, ArtifactStore, VolumeStore
from wrpo_engine.artifacts.manifest import MANIFEST_NAME, Manifest
from wrpo_engine.config import ArtifactRef, S3Storage
from wrpo_engine.contract.stages import STAGES
from wrpo_engine.errors import DataError, MissingInputError, UsageError

_SCHEME = "storage://"
_S3_SCHEME = "s3://"
_ADDRESS = re.compile(r"^(?P<stage>[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)?)/(?P<hash>[0-9a-f]{16})/?$")
_NAMED = "|".join(re.escape(kind) for kind, definition in STAGES.items() if definition.is_named)
_S3_ARTIFACT = re.compile(
    rf"^(?P<uri>s3://.+?)/(?P<stage>({_NAMED})/[a-z0-9-]+|[a-z0-9-]+)/(?P<hash>[0-9a-f]{{16}})/?$"
)


if TYPE_CHECKING:
    # boto3 is needed only where a bucket is named.
    from wrpo_engine.artifacts.s3 import S3Store


class Locator:
    """Opens locations; the storage is a directory or s3://BUCKET/PREFIX, with credentials from the environment."""

    def __init__(self, storage: str | None, environ: Mapping[str, str], clock: Callable[[], datetime]) -> None:
        self._storage = storage
        self._environ = environ
        self._clock = clock
        self._stores: dict[str, ArtifactStore] = {}

    def store(self, storage: str | None = None) -> ArtifactStore:
        """Return the store at `storage`, else the one that --storage names."""
        wanted = storage or self._storage
        if wanted is None:
            raise _no_storage()
        if wanted not in self._stores:
            self._stores[wanted] = self._open(wanted)
        return self._stores[wanted]

    def _open(self, storage: str) -> ArtifactStore:
        if not storage.startswith(_S3_SCHEME):
            refuse_scheme(storage)
            return VolumeStore(Path(storage).resolve(), self._clock)
        return self._bucket(storage)

    def _bucket(self, storage: str) -> S3Store:
        from wrpo_engine.artifacts.s3 import S3Store

        return S3Store.connect(bucket_at(storage, self._environ), self._environ, self._clock)

    def artifact(self, location: str) -> tuple[Artifact, ArtifactStore] | None:
        """Return the artifact that `location` names, with its store; None if it names something else."""
        if found := _S3_ARTIFACT.match(location):
            return self._artifact(self.store(found["uri"]), found["stage"], found["hash"])
        path = Path(location)
        if (path / MANIFEST_NAME).is_file():
            manifest = _manifest(path / MANIFEST_NAME)
            root = path.resolve().parents[len(PurePosixPath(manifest.stage).parts)]
            if path.resolve() != root / manifest.stage / manifest.hash:
                raise DataError(
                    f"{path} holds the artifact {manifest.stage}/{manifest.hash}, but under another name",
                    code="ArtifactDamaged",
                    hint=f"Move it to ROOT/{manifest.stage}/{manifest.hash}, or name one of its files.",
                )
            return self._artifact(self.store(str(root)), manifest.stage, manifest.hash)
        if not path.exists() and (found := _ADDRESS.match(location)) is not None and self._storage is not None:
            return self._artifact(self.store(), found["stage"], found["hash"])
        return None

    @staticmethod
    def _artifact(store: ArtifactStore, stage: str, hash_: str) -> tuple[Artifact, ArtifactStore]:
        artifact = store.open(ArtifactRef(stage=stage, hash=hash_))
        if artifact is None:
            raise MissingInputError(
                f"there is no artifact {stage}/{hash_} in {store.location}", hint="Check address and storage."
            )
        return artifact, store

    def output(self, location: str) -> Path | tuple[S3Store, str]:
        """Return where to write: a local path, or a bucket's store and the name below it."""
        if location.startswith(_SCHEME):
            if self._storage is None:
                raise _no_storage()
            location = f"{self._storage.rstrip('/')}/{_below(location)}"
        if location.startswith(_S3_SCHEME):
            parent, name = _parent_and_name(location)
            return self._bucket(parent), name
        refuse_scheme(location)
        return Path(location)

    def local(self, location: str) -> str:
        """Return a local path of what `location` names; hub ids stay as they are."""
        if location.startswith(_SCHEME):
            return str(self.store().local_copy(_below(location)))
        if location.startswith(_S3_SCHEME):
            parent, name = _parent_and_name(location)
            return str(self.store(parent).local_copy(name))
        return location


def bucket_at(uri: str, environ: Mapping[str, str]) -> S3Storage:
    """Return the S3 storage at s3://BUCKET/PREFIX; the environment says where the server is, as for all AWS tools."""
    if not uri.removeprefix(_S3_SCHEME).partition("/")[0]:
        raise UsageError(f"{uri} names no bucket", hint="Write s3://BUCKET/PREFIX.")
    return S3Storage(
        uri=uri,
        endpoint=environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"),
        region=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
    )


def refuse_scheme(location: str) -> None:
    """Keep an address that is none from becoming a directory of that name here."""
    if "://" in location:
        scheme = location.partition("://")[0]
        raise UsageError(
            f"{location}: nothing is written to {scheme}://", hint="Write a path, s3://BUCKET/PATH or storage://PATH."
        )


def _no_storage() -> UsageError:
    return UsageError(
        "this address lies in a storage, but none is named",
        hint="Add --storage DIRECTORY or --storage s3://BUCKET/PREFIX.",
    )


def _below(location: str) -> str:
    below = PurePosixPath(location.removeprefix(_SCHEME))
    if below.is_absolute() or ".." in below.parts or not below.parts:
        raise UsageError(f"{location} leaves the storage", hint="Write storage://DIRECTORY/NAME.")
    return below.as_posix()


def _parent_and_name(location: str) -> tuple[str, str]:
    parent, _, name = location.rstrip("/").rpartition("/")
    if not parent.removeprefix("s3:/").strip("/"):
        raise UsageError(f"{location} is a whole bucket", hint="Name a file or a directory in it.")
    return parent, name


def _manifest(path: Path) -> Manifest:
    from pydantic import ValidationError

    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path} is no valid manifest: {error.errors()[0]['msg']}", code="ArtifactDamaged") from error
