"""Helpers of all stores: addresses, writing and reading of manifests, and errors of damaged artifacts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from wrpo_engine import __version__
from wrpo_engine.artifacts.manifest import SCHEMA_VERSION, Manifest
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.storage import StorageField
from wrpo_engine.errors import DataError


def address(ref: ArtifactRef) -> str:
    """Return the artifact's path below the storage root."""
    return f"{ref.stage}/{ref.hash}"


def damaged(place: object, ref: ArtifactRef, what: str) -> DataError:
    """Return the error of a file that is not what the manifest says; `place` is its path or URI."""
    return DataError(
        f"file {place} of artifact {address(ref)} {what}",
        code="ArtifactDamaged",
        field=StorageField.STORAGE,
        hint=f"Remove the directory {address(ref)} below the storage root; the stage that made it runs again.",
    )


def unknown_file(ref: ArtifactRef, name: str, known: Iterable[str]) -> DataError:
    """Return the error of a name that the manifest does not list."""
    names = ", ".join(known) or "none"
    return DataError(
        f"artifact {address(ref)} has no file {name!r}; its files: {names}",
        code="ArtifactDamaged",
        field=StorageField.STORAGE,
        hint=f"It may be of another engine version. Remove the directory {address(ref)} below the storage root, and "
        "the stage that made it runs again.",
    )


def read_manifest(content: bytes, ref: ArtifactRef, place: object) -> Manifest:
    """Parse and check manifest.json; DataError names `place`, its path or URI."""
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise damaged(place, ref, f"is not a valid manifest: {error}") from None
    version = raw.get("schema_version", SCHEMA_VERSION) if isinstance(raw, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise DataError(
            f"file {place} of artifact {address(ref)} has schema version {version}; this engine ({__version__}) reads "
            f"version {SCHEMA_VERSION}",
            code="ArtifactVersion",
            field=StorageField.STORAGE,
            hint="Use the images of the version that wrote it, or remove the artifact, and the stage runs again.",
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise damaged(place, ref, f"is not a valid manifest: {field}: {first['msg']}") from None
    if (manifest.stage, manifest.hash) != (ref.stage, ref.hash):
        raise damaged(place, ref, f"belongs to {manifest.stage}/{manifest.hash}")
    return manifest


def require_finite(ref: ArtifactRef, metrics: Mapping[str, float] | None) -> None:
    """Refuse metrics that JSON cannot hold, before anything is written."""
    for name, value in (metrics or {}).items():
        if not math.isfinite(value):
            raise DataError(f"metric {name} of {address(ref)} is {value}", code="MetricNotFinite")
