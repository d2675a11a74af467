"""Wiring of the evaluation: benchmarks, answers of systems, and judgements."""

from __future__ import annotations

from wrpo_operator.plan.builder import Graph


def bench(graph: Graph) -> None:
    """Add the stages of this kind."""


def answer(graph: Graph) -> None:
    """Add the stages of this kind."""


def mixture(graph: Graph) -> None:
    """Add the stages of this kind."""


def perplexity(graph: Graph) -> None:
    """Add the stages of this kind."""


def rank(graph: Graph) -> None:
    """Add the stages of this kind."""


def grade(graph: Graph) -> None:
    """Add the stages of this kind."""


def select(graph: Graph) -> None:
    """Add the stages of this kind."""


def judge(graph: Graph) -> None:
    """Add the stages of this kind."""
