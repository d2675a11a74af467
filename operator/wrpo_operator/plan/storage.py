"""What a kind of storage means for the pods of an experiment: one binding per kind.

A kind without a binding is an error of the type checker and, should it get past that, of every use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Never

from wrpo_engine.config import S3Storage, Storage, VolumeStorage
from wrpo_engine.contract.storage import DEFAULT_VOLUME_ROOT, S3Fields, VolumeFields
from wrpo_operator.api.sections import ChosenStorage, StorageS3, StorageVolume

SCRATCH = "/tmp"  # noqa: S108 -- an emptyDir of the pod
_VOLUME = "wrpo-storage"


@dataclass(frozen=True, kw_only=True)
class StorageBinding:
    """How the pods of an experiment reach its storage."""

    identity: Mapping[str, Any]
    """What tells two storages of a namespace apart. Never empty: equal stages of one storage share their artifact."""
    engine: Storage
    """The storage as stages know it. Mount points and credentials come by environment."""
    environment: Mapping[str, str]
    env_from: tuple[dict[str, Any], ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()
    credentials: str | None = None
    """Secret with the credentials: another one shapes the pods, but not what they compute."""
    claim: str | None = None
    """PersistentVolumeClaim that must exist before a pod can start."""


@lru_cache(maxsize=1024)  # asked for every stage of every plan
def binding_of(storage: ChosenStorage) -> StorageBinding:
    """Return the binding of a storage; TypeError if its kind has none."""
    match storage:
        case StorageS3(credentials_secret_name=secret):
            return StorageBinding(
                # Credentials and region do not tell storages apart.
                identity={"uri": storage.uri.rstrip("/"), "endpoint": storage.endpoint},
                engine=S3Storage(**storage.model_dump(include=set(S3Fields.model_fields))),
                # Copies of what is in the bucket; the root file system is read-only.
                environment={"WRPO_SCRATCH": SCRATCH},
                env_from=({"secretRef": {"name": secret}},) if secret else (),
                credentials=secret,
            )
        case StorageVolume(claim_name=claim):
            return StorageBinding(
                identity={"claim": claim, "path": storage.path.strip("/")},
                engine=VolumeStorage(**storage.model_dump(include=set(VolumeFields.model_fields))),
                environment={"WRPO_VOLUME_ROOT": DEFAULT_VOLUME_ROOT},
                volumes=({"name": _VOLUME, "persistentVolumeClaim": {"claimName": claim}},),
                mounts=({"name": _VOLUME, "mountPath": DEFAULT_VOLUME_ROOT},),
                claim=claim,
            )
        case _:
            raise unbound(storage)


def unbound(storage: Never) -> TypeError:
    """Return the error of a kind of storage that is not handled; the type checker refuses a call that can happen."""
    return TypeError(
        f"spec.storage: {type(storage).__name__} is a kind of storage that this version of the operator does not bind; "
        "use s3 or volume, or the version that knows it"
    )
