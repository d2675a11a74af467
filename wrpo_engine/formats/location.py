"""Locations of data as users write them: a path, storage://PATH, an artifact's address in a storage, an s3:// URI."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from wrpo_engine.artifacts import Artifact, ArtifactStore
from wrpo_engine.artifacts.manifest import MANIFEST_NAME, Manifest
from wrpo_engine.artifacts.roots import REMOTE, DirectoryRoot, StorageRoot, refuse_scheme, root_at, scheme_of
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.stages import STAGES
from wrpo_engine.errors import DataError, MissingInputError, UsageError

_SCHEME = "storage://"
_ADDRESS = re.compile(r"^(?P<stage>[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)?)/(?P<hash>[0-9a-f]{16})/?$")
_NAMED = "|".join(re.escape(kind) for kind, definition in STAGES.items() if definition.is_named)
_REMOTE_ARTIFACT = re.compile(
    rf"^(?P<uri>(?:{REMOTE})://.+?)/(?P<stage>({_NAMED})/[a-z0-9-]+|[a-z0-9-]+)/(?P<hash>[0-9a-f]{{16}})/?$"
)


@dataclass(frozen=True, slots=True)
class Output:
    """Where to write: a name below a root."""

    root: StorageRoot
    name: str


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
        root = root_at(storage, self._environ)
        if isinstance(root, DirectoryRoot):
            root = DirectoryRoot(root.path.resolve())
        return root.store(self._clock)

    def artifact(self, location: str) -> tuple[Artifact, ArtifactStore] | None:
        """Return the artifact that `location` names, with its store; None if it names something else."""
        if found := _REMOTE_ARTIFACT.match(location):
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

    def output(self, location: str) -> Output:
        """Return where to write."""
        if location.startswith(_SCHEME):
            if self._storage is None:
                raise _no_storage()
            location = f"{self._storage.rstrip('/')}/{_below(location)}"
        if scheme_of(location):
            parent, name = _parent_and_name(location)
            return Output(root_at(parent, self._environ), name)
        refuse_scheme(location)
        path = Path(location)
        return Output(DirectoryRoot(path.parent), path.name)

    def local(self, location: str) -> str:
        """Return a local path of what `location` names; hub ids stay as they are."""
        if location.startswith(_SCHEME):
            return str(self.store().local_copy(_below(location)))
        if scheme_of(location):
            parent, name = _parent_and_name(location)
            return str(self.store(parent).local_copy(name))
        return location


def _no_storage() -> UsageError:
    return UsageError(
        "this address is relative to a storage, but none is given",
        hint="Add --storage DIRECTORY or --storage s3://BUCKET/PREFIX.",
    )


def _below(location: str) -> str:
    below = PurePosixPath(location.removeprefix(_SCHEME))
    if below.is_absolute() or ".." in below.parts or not below.parts:
        raise UsageError(f"{location} leaves the storage", hint="Write storage://DIRECTORY/NAME.")
    return below.as_posix()


def _parent_and_name(location: str) -> tuple[str, str]:
    parent, _, name = location.rstrip("/").rpartition("/")
    if not parent.partition(":/")[2].strip("/"):
        raise UsageError(f"{location} is a whole bucket", hint="Name a file or a directory in it.")
    return parent, name


def _manifest(path: Path) -> Manifest:
    from pydantic import ValidationError

    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} is not a valid manifest: {error.errors()[0]['msg']}", code="ArtifactDamaged"
        ) from error
