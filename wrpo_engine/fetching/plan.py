"""Plan of a fetch: the files of a hub model with size and checksum. Pure, except for the requests to the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.hub.models import MODEL_FILES

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a commit. Large ones have a sha256, all have git's id of their content."""

    name: str
    size: int | None
    sha256: str | None
    blob_id: str | None

    def is_content_of(self, path: Path) -> bool:
        """Return whether the local file is this one; one without a checksum on the hub must have the size."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return False
        if self.sha256 is not None:
            return _digest(path, hashlib.sha256()) == self.sha256
        if self.blob_id is not None:
            return _digest(path, hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)) == self.blob_id
        return True


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """A pinned model."""

    name: str
    requested: str | None
    revision: str
    """The commit."""
    files: tuple[HubFile, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        files = [
            {"name": each.name, "size": each.size, "sha256": each.sha256, "blob_id": each.blob_id}
            for each in self.files
        ]
        return {"name": self.name, "requested": self.requested, "revision": self.revision, "files": files}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> FetchPlan:
        """Return the plan in the content of plan.json."""
        files = tuple(HubFile(**each) for each in raw["files"])
        return cls(raw["name"], raw["requested"], raw["revision"], files)


def choose_files(name: str, files: Sequence[HubFile], field: str) -> tuple[HubFile, ...]:
    """Return the files of a model that stages use; ConfigError if it has no safetensors."""
    for each in files:
        path = PurePosixPath(each.name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{name} has a file {each.name!r}, which leads out of its directory", code="ModelInvalid")
    chosen = tuple(
        sorted(
            (each for each in files if any(fnmatch(each.name, pattern) for pattern in MODEL_FILES)),
            key=lambda each: each.name,
        )
    )
    if not any(each.name.endswith(".safetensors") for each in chosen):
        others = ", ".join(sorted(each.name for each in files)[:5]) or "nothing"
        raise ConfigError(
            field,
            name,
            f"it has no *.safetensors (found: {others})",
            "Use a model with safetensors; other formats are not loaded, as they can run code.",
            code="ModelNotSafetensors",
        )
    return chosen


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return str(digest.hexdigest())
