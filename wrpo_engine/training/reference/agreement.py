"""Agreement of policy and reference before the first step, when they are the same model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wrpo_engine.errors import DataError
from wrpo_engine.training.batch.collate import Batch

_PER_TOKEN_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Nats per token by which two computations of a long response's log-probability may differ."""
_LONG = 256
"""Tokens of a long response, over which rounding errors average out."""


@dataclass(frozen=True, slots=True, order=True)
class Disagreement:
    """The response on which policy and reference differ most, relative to the tolerance at its length."""

    weight: float = 0.0
    """The difference per token times min(1, sqrt(tokens / 256)), which the tolerance bounds."""
    per_token: float = 0.0
    """The difference in nats per token."""
    num_tokens: int = 0
    row_id: str = ""


def largest_disagreement(batch: Batch, logps_S: Tensor, reference_S: Tensor) -> Disagreement:
    """Return the largest disagreement among a micro-batch's responses; both tensors are [S], summed log-probabilities.

    The same micro-batches give the same numbers, and the difference is exactly 0. In other micro-batches, for example
    with a cached reference and another number of ranks, each token's log-probability is rounded differently. In bf16
    one token may be off by 0.1 in either direction. The mean of n such errors, roughly independent, is smaller by
    sqrt(n). A difference that shows another model over hundreds of tokens is rounding over two tokens. So the bound on
    the mean of n tokens is

        tolerance * max(1, sqrt(256 / n))

    which in bf16 is 0.02 from 256 tokens on, 0.08 at 16, 0.23 at 2. The reference of another model or another row
    differs by more on some response of the step: by tenths per token, also on long responses.
    """
    lengths_S = batch.lengths_S.to(torch.float32)
    per_token_S = (logps_S.detach() - reference_S).abs() / lengths_S
    weights_S = per_token_S * (lengths_S / _LONG).sqrt().clamp(max=1.0)
    index = int(weights_S.argmax())
    return Disagreement(
        float(weights_S[index]),
        float(per_token_S[index]),
        int(lengths_S[index]),
        batch.row_ids[index * len(batch.row_ids) // batch.num_sequences],
    )


def tolerance(disagreement: Disagreement, precision: str) -> float:
    """Return the tolerance in nats per token for the length of the disagreement's response."""
    longest = _PER_TOKEN_TOLERANCE[precision]
    return longest * max(1.0, math.sqrt(_LONG / max(1, disagreement.num_tokens)))


def require_agreement(disagreement: Disagreement, precision: str) -> None:
    """Raise DataError if policy and reference differ before the first step: the reference is another model's then."""
    bound = tolerance(disagreement, precision)
    if disagreement.per_token > bound:
        raise DataError(
            f"at step 0 policy and reference differ by {disagreement.per_token:.3g} per token on a response of "
            f"{disagreement.num_tokens} tokens of row {disagreement.row_id}, where they must agree "
            f"(tolerance {bound:.3g})",
            code="ReferenceMismatch",
            hint="Remove the stage's `reference` directory, so that it is recomputed, and retry.",
        )
