"""Access to the storage of an experiment from this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from wrpo_engine.storage import DirectoryRoot, StorageRoot, root_of
from wrpo_operator.api.sections import Storage, StorageS3, StorageVolume
from wrpo_operator.cli.connect import STATE_DIR, Target
from wrpo_operator.plan.storage import binding_of, unbound
from wrpo_operator.runtime.resources import JsonObject


@dataclass(frozen=True, slots=True)
class UnmountedVolume:
    """A volume of a cluster whose files are not on this machine."""

    claim: str
    path: str

    def below(self, name: str) -> str:
        """Return the location of a file of the volume, for display."""
        return f"claim {self.claim}: {self.path}/{name}" if self.path else f"claim {self.claim}: {name}"


def storage_of(obj: JsonObject, target: Target) -> StorageRoot | UnmountedVolume:
    """Return the storage of an experiment as seen from this machine; ValueError if its spec has none."""
    storage = Storage.model_validate(obj["spec"]["storage"]).chosen
    match storage:
        case StorageS3():
            return root_of(binding_of(storage).engine, os.environ)
        case StorageVolume(claim_name=claim, path=path):
            if not target.embedded:
                return UnmountedVolume(claim, path)
            return DirectoryRoot(_claim_directory(target, claim) / path)
        case _:
            raise unbound(storage)


def read_remote(obj: JsonObject, uri: str) -> bytes | None:
    """Return a small file of the experiment's remote storage, or None if it does not exist."""
    root = root_of(binding_of(Storage.model_validate(obj["spec"]["storage"]).chosen).engine, os.environ)
    if isinstance(root, DirectoryRoot):
        raise TypeError(f"{uri} is not in {root.location}")
    return root.read(uri.removeprefix(f"{root.location}/"))


def _claim_directory(target: Target, claim: str) -> Path:
    from wrpo_devcluster.controllers.volumes import claim_directory

    return claim_directory(STATE_DIR.resolve(), target.namespace, claim)
