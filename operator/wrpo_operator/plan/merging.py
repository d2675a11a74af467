"""Wiring of merged models and of models that choose each token together."""

from __future__ import annotations

from wrpo_operator.plan.builder import Graph


def merge(graph: Graph) -> None:
    """Add the stages of this kind."""


def joint(graph: Graph) -> None:
    """Add the stages of this kind."""
