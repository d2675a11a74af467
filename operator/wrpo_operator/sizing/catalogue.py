"""Public facts about well-known models, for plans without access to the models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import yaml

from wrpo_engine.contract.model_facts import ModelFacts, facts_of

CATALOGUE = "catalogue.yaml"
_DTYPE = {"torch_dtype": "bfloat16"}
"""Number format of all listed models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """Facts about a model of the hub."""

    model: str
    """Hub id."""
    facts: ModelFacts
    config: Mapping[str, Any]
    """The values of config.json that the facts were counted from."""
    published: int | None
    """Parameters that the hub states for the weights. None: not known."""
    revision: str | None
    """Commit that the facts were read from. None: not known."""
    date: str
    """Day on which the facts were collected, ISO 8601."""


def known_facts(model: str) -> KnownModel | None:
    """Return the facts about a hub id, whose case is ignored as on the hub; None if the catalogue does not have it."""
    return known_models().get(model.lower())


@cache
def known_models() -> Mapping[str, KnownModel]:
    """Return all models of the catalogue by hub id in lower case."""
    content = yaml.safe_load(files(__package__).joinpath(CATALOGUE).read_text(encoding="utf-8"))
    found = [_known(name, entry, content["date"]) for entry in content["models"] for name in entry["names"]]
    return MappingProxyType({known.model.lower(): known for known in found})


def _known(name: str, entry: Mapping[str, Any], date: str) -> KnownModel:
    config = {**_DTYPE, **entry["config"], **({"auto_map": {}} if entry.get("code") else {})}
    return KnownModel(
        model=name,
        facts=facts_of(config, weight_bytes=None),
        config=config,
        published=entry["parameters"],
        revision=entry.get("revision"),
        date=date,
    )
