"""Public interface to storages, which the operator's commands may use in addition to the contract."""

from wrpo_engine.artifacts.inventory import Found, Inventory
from wrpo_engine.artifacts.roots import (
    BucketRoot,
    DirectoryRoot,
    S3Server,
    StorageRoot,
    root_at,
    root_of,
    scheme_of,
)
from wrpo_engine.artifacts.s3_client import S3Location
from wrpo_engine.errors import WrpoError as EngineError

__all__ = [
    "BucketRoot",
    "DirectoryRoot",
    "EngineError",
    "Found",
    "Inventory",
    "S3Location",
    "S3Server",
    "StorageRoot",
    "root_at",
    "root_of",
    "scheme_of",
]
