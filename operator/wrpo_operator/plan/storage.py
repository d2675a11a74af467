"""Bindings of storage kinds: how the pods of an experiment access each kind.

A kind without a binding is an error of the type checker and, if that is bypassed, of every use.
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
    """Access of an experiment's pods to its storage."""

    identity: Mapping[str, Any]
    """Identity of the storage in its namespace, never empty: equal stages of one storage share their artifact."""
    engine: Storage
    """The storage in the configuration of stages. Mount points and credentials come from the environment."""
    environment: Mapping[str, str]
    env_from: tuple[dict[str, Any], ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()
    credentials: str | None = None
    """Secret with the credentials: it affects the pods, but not their results."""
    claim: str | None = None
    """PersistentVolumeClaim that must exist before a pod can start."""


@lru_cache(maxsize=1024)  # called for every stage of every plan
def binding_of(storage: ChosenStorage) -> StorageBinding:
    """Return the binding of a storage; TypeError if its kind has none."""
    match storage:
        case StorageS3(credentials_secret_name=secret):
            return StorageBinding(
                # Credentials and region are not part of the identity.
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
        "use s3 or volume, or a version that supports it"
    )
