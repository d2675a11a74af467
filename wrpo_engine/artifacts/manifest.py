"""Content of an artifact's manifest.json, with which a reader verifies the artifact's files."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
_CHUNK_BYTES = 1 << 20


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Model):
    """One file of the artifact; `name` is relative to the artifact's directory, with forward slashes."""

    name: str
    size: int
    sha256: str
    rows: int | None = None


class InputEntry(_Model):
    """An upstream artifact as it was when this stage read it."""

    stage: str
    hash: str
    digest: str


class Manifest(_Model):
    """Written last: an artifact without it does not exist."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    hash: str
    config: dict[str, Any]
    inputs: dict[str, InputEntry] = Field(default_factory=dict)
    files: list[FileEntry]
    metrics: dict[str, float] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)
    engine_version: str
    created_at: datetime

    @property
    def rows(self) -> int:
        """Rows of all files together."""
        return sum(entry.rows or 0 for entry in self.files)

    def to_bytes(self) -> bytes:
        """Return the content of manifest.json: indented JSON in UTF-8."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(manifest: bytes) -> str:
    """Return the sha256 of a manifest's bytes in hexadecimal."""
    return hashlib.sha256(manifest).hexdigest()
