"""Room of a model for prompt and response."""

from __future__ import annotations

from wrpo_engine.hub.models import ResolvedModel, context_length


def shared_context(model: ResolvedModel, limit: int | None) -> int | None:
    """Return the tokens of prompt and response together: the model's context or `limit`, the smaller; None for none."""
    known = [length for length in (context_length(model), limit) if length is not None]
    return min(known, default=None)
