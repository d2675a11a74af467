"""Plan of a fetch: the files of a hub model with size and checksum. Pure, except for the requests to the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.hub.remote import HubFile
from wrpo_engine.loading.files import WEIGHTS_SUFFIX, is_model_file


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """A pinned model."""

    name: str
    requested: str | None
    revision: str
    """The commit."""
    files: tuple[HubFile, ...]
    facts: ModelFacts | None = None
    """The size of the model, if its config gives it."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        files = [
            {"name": each.name, "size": each.size, "sha256": each.sha256, "blob_id": each.blob_id}
            for each in self.files
        ]
        facts = None if self.facts is None else self.facts.model_dump(mode="json", exclude_none=True)
        return {
            "name": self.name,
            "requested": self.requested,
            "revision": self.revision,
            "files": files,
            "facts": facts,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> FetchPlan:
        """Return the plan in the content of plan.json."""
        files = tuple(HubFile(**each) for each in raw["files"])
        # An older version recorded none.
        facts = None if raw.get("facts") is None else ModelFacts.model_validate(raw["facts"])
        return cls(raw["name"], raw["requested"], raw["revision"], files, facts)


def choose_files(name: str, files: Sequence[HubFile], field: str) -> tuple[HubFile, ...]:
    """Return the files of a model that stages use; ConfigError if it has no safetensors."""
    for each in files:
        path = PurePosixPath(each.name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{name} has a file {each.name!r}, which leads out of its directory", code="ModelInvalid")
    chosen = tuple(
        sorted(
            (each for each in files if is_model_file(each.name)),
            key=lambda each: each.name,
        )
    )
    if not any(each.name.endswith(WEIGHTS_SUFFIX) for each in chosen):
        others = ", ".join(sorted(each.name for each in files)[:5]) or "nothing"
        raise ConfigError(
            field,
            name,
            f"it has no *.safetensors (found: {others})",
            "Use a model with safetensors; other formats are not loaded, as they can run code.",
            code="ModelNotSafetensors",
        )
    return chosen
