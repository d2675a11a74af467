"""Storage of artifacts: a union of kinds whose fields the experiment's spec and the stages share.

A kind of storage is a class of fields, from which the section of the spec (`wrpo_operator.api.sections`) and the
member of the union `Storage` inherit. The engine's access to a member is in `wrpo_engine.artifacts.roots`, the
settings of its pods are in `wrpo_operator.plan.storage`; both match the union exhaustively.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_VOLUME_ROOT = "/var/lib/wrpo"
"""Mount point of the volume in pods, unless WRPO_VOLUME_ROOT overrides it."""


class StorageField(StrEnum):
    """Fields of the experiment's spec that errors of a storage name."""

    STORAGE = "storage"
    VOLUME_CLAIM = "storage.volume.claimName"
    S3 = "storage.s3"
    S3_URI = "storage.s3.uri"
    S3_ENDPOINT = "storage.s3.endpoint"
    S3_REGION = "storage.s3.region"
    S3_ADDRESSING_STYLE = "storage.s3.addressingStyle"
    S3_CREDENTIALS = "storage.s3.credentialsSecretName"


class VolumeFields(BaseModel):
    """A directory on a volume."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str = Field(
        default="", max_length=512, pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*)?$"
    )
    """Directory below the volume's root. Empty: the root itself."""


class S3Fields(BaseModel):
    """A prefix in an S3 bucket."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    uri: str = Field(max_length=1024, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()/=-]*)?$")
    """s3://BUCKET/PREFIX."""
    endpoint: str | None = Field(
        default=None, max_length=512, pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?$"
    )
    """URL of an S3-compatible service. Unset: AWS."""
    region: str | None = Field(default=None, max_length=64, pattern=r"^[a-z0-9-]+$")
    """Region of the bucket. Unset: as in the environment."""
    addressing_style: Literal["Path", "Virtual"] | None = None
    """Where requests name the bucket: Path (https://HOST/BUCKET) or Virtual (https://BUCKET.HOST), which some services
    require. Unset: as in the AWS configuration, else Path if an endpoint is set."""


class _VolumeKind(BaseModel):
    kind: Literal["volume"] = "volume"


class _S3Kind(BaseModel):
    kind: Literal["s3"] = "s3"


class VolumeStorage(VolumeFields, _VolumeKind):
    """A directory on a mounted volume, whose mount point is WRPO_VOLUME_ROOT."""

    # A separate base puts `kind` first in the file: ConfigMaps are named by a digest of their content.
    model_config = ConfigDict(extra="forbid", frozen=True)


class S3Storage(S3Fields, _S3Kind):
    """A prefix in an S3 bucket; credentials come from the usual environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Storage: TypeAlias = Annotated[VolumeStorage | S3Storage, Field(discriminator="kind")]
