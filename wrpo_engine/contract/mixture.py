"""Order of the calls of a mixture of models (Mixture-of-Agents). Pure; shared by the operator and the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Settings of the calls to one kind of member."""

    temperature: float
    max_tokens: int


AGGREGATOR_DECODING = Decoding(temperature=0.7, max_tokens=2048)
"""The settings with which the released script always calls the aggregator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureCall:
    """One model's answer to one prompt."""

    layer: int
    """Counts from 1; the aggregator is in the last one."""
    model: str
    references: tuple[int, ...]
    """Positions, in the plan, of the calls whose answers the model reads, in the order of the proposers."""
    decoding: Decoding


def mixture_calls(
    proposers: Sequence[str],
    aggregator: str,
    rounds: int,
    *,
    proposing: Decoding,
    aggregating: Decoding = AGGREGATOR_DECODING,
) -> list[MixtureCall]:
    """Return the calls of a mixture: `rounds` layers of all proposers, then the aggregator.

    The first layer reads the prompt alone. Each member of a later layer, and the aggregator, reads the answers of the
    whole layer before it.
    """
    calls: list[MixtureCall] = []
    references: tuple[int, ...] = ()
    for layer in range(1, rounds + 1):
        start = len(calls)
        calls += [
            MixtureCall(layer=layer, model=model, references=references, decoding=proposing) for model in proposers
        ]
        references = tuple(range(start, len(calls)))
    return [*calls, MixtureCall(layer=rounds + 1, model=aggregator, references=references, decoding=aggregating)]
