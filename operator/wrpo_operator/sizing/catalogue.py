"""Public facts about well-known models, for plans without access to the models."""

from __future__ import annotations

from dataclasses import dataclass

from wrpo_engine.contract.model_facts import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """Facts about a model of the hub."""

    model: str
    facts: ModelFacts
    revision: str | None
    """Commit that the facts were read from. None: unknown."""
    date: str
    """Date of the facts, ISO 8601."""


def known_facts(model: str) -> KnownModel | None:
    """Return the facts about a hub id; None if the catalogue does not have it."""
    return _KNOWN.get(model.lower())


_KNOWN: dict[str, KnownModel] = {}
