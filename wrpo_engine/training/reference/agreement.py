"""Whether policy and reference agree before the first step, when one is the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wrpo_engine.errors import DataError
from wrpo_engine.training.batch.collate import Batch

_PER_TOKEN_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of a long response's log-probability computed twice, divided by its tokens."""
_LONG = 256
"""Tokens from which on rounding has averaged out."""


@dataclass(frozen=True, slots=True, order=True)
class Disagreement:
    """The response on which policy and reference differ most, measured by what is tolerated at its length."""

    weight: float = 0.0
    """The difference per token times min(1, sqrt(tokens / 256)): what the tolerance bounds."""
    per_token: float = 0.0
    num_tokens: int = 0
    row_id: str = ""


def largest_disagreement(batch: Batch, logps_S: Tensor, reference_S: Tensor) -> Disagreement:
    """Return that of a micro-batch's responses.

    The same micro-batches give the same numbers, and the difference is exactly 0. In others (a cached reference and
    another number of ranks, say) each token's log-probability is rounded otherwise. In bf16 one token may be off by a
    tenth, either way, and n such errors, about independent, leave a mean that is smaller by sqrt(n): what is another
    model over hundreds of tokens is rounding over two. So the bound on the mean of n tokens is

        tolerance * max(1, sqrt(256 / n))

    in bf16 0.02 from 256 tokens on, 0.08 at 16, 0.23 at 2. Another model's reference, or another row's, differs by more
    than that on some response of the step: by tenths per token, on long ones too.
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
    """Return what is tolerated per token on the disagreement's response."""
    longest = _PER_TOKEN_TOLERANCE[precision]
    return longest * max(1.0, math.sqrt(_LONG / max(1, disagreement.num_tokens)))


def require_agreement(disagreement: Disagreement, precision: str) -> None:
    """Before the first step the policy is the reference; if the numbers say otherwise, they are of another model."""
    bound = tolerance(disagreement, precision)
    if disagreement.per_token > bound:
        raise DataError(
            f"at step 0 policy and reference differ by {disagreement.per_token:.3g} per token on a response of "
            f"{disagreement.num_tokens} tokens of row {disagreement.row_id}, where they must agree "
            f"(tolerance {bound:.3g})",
            code="ReferenceMismatch",
            hint="Remove the stage's `reference` directory, so that it is computed anew, and try again.",
        )
