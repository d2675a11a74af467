"""Wiring of explicit fusion: the stages that represent the SFT rows by models and align their distributions."""

from __future__ import annotations

from wrpo_operator.plan.builder import Graph


def represent(graph: Graph) -> None:
    """Add the stages of this kind."""


def align(graph: Graph) -> None:
    """Add the stages of this kind."""
