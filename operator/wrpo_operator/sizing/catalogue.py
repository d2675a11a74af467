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
    date: str
    """Day on which the facts were collected, ISO 8601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCommit:
    """Commit that a model of the hub can be pinned to."""

    commit: str
    """40 hexadecimal digits."""
    files: int
    """Unrelated public files that name the commit as one of this model, at least two. The hub was not asked."""
    date: str
    """Day on which the files were counted, ISO 8601."""


def known_facts(model: str) -> KnownModel | None:
    """Return the facts about a hub id, whose case is ignored as on the hub; None if the catalogue does not have it."""
    return known_models().get(model.lower())


def known_commit(model: str) -> str | None:
    """Return the commit that a hub id can be pinned to; None if none is known. The case is ignored as on the hub."""
    found = known_commits().get(model.lower())
    return None if found is None else found.commit


@cache
def known_models() -> Mapping[str, KnownModel]:
    """Return all models of the catalogue by hub id in lower case."""
    content = _content()
    found = [_known(name, entry, content["date"]) for entry in content["models"] for name in entry["names"]]
    return MappingProxyType({known.model.lower(): known for known in found})


@cache
def known_commits() -> Mapping[str, KnownCommit]:
    """Return the commits of the catalogue by hub id in lower case."""
    section = _content()["revisions"]
    found = {name.lower(): KnownCommit(date=section["date"], **entry) for name, entry in section["commits"].items()}
    return MappingProxyType(found)


@cache
def _content() -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load(files(__package__).joinpath(CATALOGUE).read_text(encoding="utf-8"))
    return found


def _known(name: str, entry: Mapping[str, Any], date: str) -> KnownModel:
    config = {**_DTYPE, **entry["config"], **({"auto_map": {}} if entry.get("code") else {})}
    return KnownModel(
        model=name,
        facts=facts_of(config, weight_bytes=None),
        config=config,
        published=entry["parameters"],
        date=date,
    )
