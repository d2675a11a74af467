"""Rotary positions that depend on the longest sequence of a forward pass, and so on the composition of the batch.

    dynamic     beyond the model's context the frequencies follow the longest sequence there is and was
    longrope    one set of frequencies up to the original context, another beyond it (Phi-3 of 128k)

Rows that are computed together have to be of one kind, or none of them is what the model says of it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RotaryLimit:
    """Where a model's frequencies change."""

    kind: str
    """`dynamic` or `longrope`."""
    tokens: int
    """The longest sequence with the frequencies of short ones."""

    @classmethod
    def of_config(cls, config: Any) -> RotaryLimit | None:
        """Read a Hugging Face config; None if positions do not depend on other rows."""
        text = config.get_text_config()
        parameters = getattr(text, "rope_parameters", None) or {}
        # Of architectures with several kinds of layers, one for each.
        of_layers = [parameters] if "rope_type" in parameters else [one for one in parameters.values() if one]
        for one in of_layers:
            kind = one.get("rope_type") if isinstance(one, dict) else None
            if kind == "dynamic":
                return cls(kind, int(text.max_position_embeddings))
            if kind == "longrope":
                return cls(kind, int(one.get("original_max_position_embeddings") or text.max_position_embeddings))
        return None

    def sides(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the indices of the sequences that do not reach beyond the limit, and of those that do."""
        short = [index for index, length in enumerate(lengths) if length <= self.tokens]
        long = [index for index, length in enumerate(lengths) if length > self.tokens]
        return [side for side in (short, long) if side]


def require_own_positions(config: Any, lengths: Iterable[int], *, field: str) -> None:
    """Raise ConfigError if sequences of these lengths (tokens) would change each other's positions."""
    limit = RotaryLimit.of_config(config)
    if limit is None:
        return
    shortest, longest = _extremes(lengths)
    if longest <= limit.tokens or (limit.kind == "longrope" and shortest > limit.tokens):
        return
    others = "" if limit.kind == "dynamic" else f", and of {shortest}, which do not"
    raise ConfigError(
        field,
        longest,
        f"the model's {limit.kind} rotary positions change beyond {limit.tokens} tokens with the longest sequence that "
        f"is computed together with others; there are sequences of {longest} tokens, which reach beyond{others}",
        f"Set it to {limit.tokens} or less, or use a model whose rotary scaling is fixed (yarn, llama3, linear).",
        code="PositionsVary",
    )


def _extremes(lengths: Iterable[int]) -> tuple[int, int]:
    found = list(lengths)
    return min(found, default=0), max(found, default=0)
