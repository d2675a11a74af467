"""Facts about models for `wrpo plan`: from a directory, from the hub, else from the catalogue. No weights are read."""

from __future__ import annotations

import http.client
import json
import os
import struct
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, prod
from pathlib import Path
from typing import Any

from wrpo_engine.contract.model_facts import FactsError, ModelFacts, facts_of, with_commit
from wrpo_operator.sizing.catalogue import known_facts

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5
MAX_JSON_BYTES = 64 * 2**20
_IN_STORAGE = "storage://"
_COMMIT_HEADER = "X-Repo-Commit"
"""The hub's header with the commit that a branch points to."""
_OFFLINE = ("1", "on", "yes", "true")


@dataclass(slots=True)
class ModelSources:
    """Where facts are looked up. The hub is not asked again once it could not be reached."""

    use_hub: bool = True
    storage: Path | None = None
    """Directory that models of storage:// are in."""
    faults: list[str] = field(default_factory=list)
    """One sentence for each model that could not be read."""
    _found: dict[tuple[str, str | None], ModelFacts | None] = field(default_factory=dict)

    def facts(self, model: str, revision: str | None = None) -> ModelFacts | None:
        """Return the facts about a model as named in a spec; None if they are unknown."""
        key = (model, revision)
        if key not in self._found:
            self._found[key] = self._look_up(model, revision)
        return self._found[key]

    def _look_up(self, model: str, revision: str | None) -> ModelFacts | None:
        directory = self._directory(model)
        try:
            if directory is not None and (directory / CONFIG).is_file():
                return facts_of_directory(directory)
            if not model.startswith(("/", _IN_STORAGE)):
                return self._of_hub(model, revision) or self._of_catalogue(model)
        except (OSError, ValueError) as error:
            self.faults.append(f"{model} cannot be read: {error}")
            return None
        self.faults.append(f"{model} cannot be read from here, so nothing is known about its size.")
        return None

    def _directory(self, model: str) -> Path | None:
        """Return where a model that is no hub id is on this machine; None if that is unknown."""
        if model.startswith(_IN_STORAGE) and self.storage is not None:
            return self.storage / model.removeprefix(_IN_STORAGE)
        return Path(model) if model.startswith("/") else None

    def _of_hub(self, model: str, revision: str | None) -> ModelFacts | None:
        if not self.use_hub or os.environ.get("HF_HUB_OFFLINE", "").lower() in _OFFLINE:
            return None
        try:
            config, commit = _from_hub(model, revision, CONFIG)
            index, _ = _from_hub(model, commit or revision, INDEX) if config is not None else (None, None)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            self.use_hub = False
            self.faults.append(f"The hub cannot be reached ({getattr(error, 'reason', error)}); the catalogue is used.")
            return None
        return None if config is None else with_commit(facts_of(config, weight_bytes=_size_in(index)), commit)

    def _of_catalogue(self, model: str) -> ModelFacts | None:
        known = known_facts(model)
        if known is None:
            self.faults.append(f"Nothing is known about the size of {model}: it is not in the catalogue.")
        return None if known is None else known.facts


def facts_of_directory(path: Path) -> ModelFacts:
    """Return the facts about a model in a directory. Raises FactsError or OSError."""
    config = _object_of((path / CONFIG).read_bytes(), str(path / CONFIG))
    parts = sorted(path.glob("*.safetensors"))
    weights = [_weights_in(part) for part in parts]
    return facts_of(
        config,
        weight_bytes=sum(size for size, _ in weights) or None,
        stored_parameters=sum(values for _, values in weights) or None,
    )


def _object_of(content: bytes, place: str) -> dict[str, Any]:
    """Return a JSON object; FactsError that names its place for anything else."""
    try:
        found = json.loads(content)
    except ValueError as error:
        raise FactsError(f"{place} is damaged: {error}. Download it again.") from error
    if not isinstance(found, dict):
        raise FactsError(f"{place} is not a JSON object. Name a model in the format of Transformers.")
    return found


def _weights_in(path: Path) -> tuple[int, int]:
    """Return the bytes and the values of a safetensors file by its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 0 < length <= MAX_JSON_BYTES:
            raise FactsError(
                f"{path} is not a safetensors file: its header would have {length} bytes. Download it again."
            )
        header = _object_of(file.read(length), f"The header of {path}")
    try:
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        spans = [entry["data_offsets"] for entry in tensors]
        return sum(end - begin for begin, end in spans), sum(prod(entry["shape"]) for entry in tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FactsError(f"{path} has a damaged header: {error!r}. Download it again.") from error


def _from_hub(model: str, revision: str | None, name: str) -> tuple[Mapping[str, Any] | None, str | None]:
    """Return a JSON file of the hub and its commit; None if the hub does not have it or does not give it."""
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    if not endpoint.startswith(("http://", "https://")):
        raise FactsError(f"HF_ENDPOINT is {endpoint!r}; it must be an http or https URL. Correct it.")
    url = f"{endpoint}/{urllib.parse.quote(model)}/resolve/{urllib.parse.quote(revision or 'main', safe='')}/{name}"
    request = urllib.request.Request(url)  # noqa: S310 -- the scheme is checked above
    token = os.environ.get("HF_TOKEN")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S) as response:  # noqa: S310 -- as above
            return _object_of(response.read(MAX_JSON_BYTES), name), response.headers.get(_COMMIT_HEADER)
    except urllib.error.HTTPError:
        return None, None


def _size_in(index: Mapping[str, Any] | None) -> int | None:
    """Return the total size that an index states; FactsError if it is no size."""
    metadata = (index or {}).get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < inf:
        raise FactsError(
            f"metadata.total_size of {INDEX} is {str(size)[:80]}; it must be a number of bytes. Upload the index that "
            "belongs to the weights."
        )
    return int(size)
