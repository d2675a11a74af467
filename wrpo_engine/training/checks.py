"""What stops a run before damage is done: losses, gradients and references that cannot be right."""

from __future__ import annotations

from collections.abc import Sequence

from wrpo_engine.errors import DataError
from wrpo_engine.training.metrics import Disagreement

_NAMES_SHOWN = 10
_PER_TOKEN_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of a log-probability computed twice: exactly 0 in the same micro-batches, rounding in others (another world size)."""


def loss_not_finite(step: int, row_ids: Sequence[str]) -> DataError:
    """Return the error of rows whose loss is not finite in the step that follows `step` completed ones."""
    return DataError(
        f"the loss is not finite at step {step + 1} for {len(row_ids)} rows: {_names(row_ids)}. "
        "Training stopped before the optimizer step; no weight has been changed by it",
        code="LossNotFinite",
        field="training.learningRate",
        hint="Lower the learning rate, or look at these rows in the input artifact.",
    )


def held_out_loss_not_finite(done: int, row_ids: Sequence[str]) -> DataError:
    return DataError(
        f"the loss of {len(row_ids)} held-out rows is not finite after step {done}: {_names(row_ids)}",
        code="LossNotFinite",
        field="training.learningRate",
        hint="Lower the learning rate, or look at these rows in the input artifact.",
    )


def require_finite_gradient(grad_norm: float, step: int) -> None:
    """Stop a run whose backend has left out its optimizer step."""
    if not grad_norm < float("inf"):
        raise DataError(
            f"the gradient norm is {grad_norm} at step {step + 1} though every loss is finite. "
            "Training stopped before the optimizer step; no weight has been changed by it",
            code="GradientNotFinite",
            field="training.learningRate",
            hint="Lower the learning rate, or train in float32; the next attempt continues from the last checkpoint.",
        )


def require_agreement(disagreement: Disagreement, precision: str) -> None:
    """Before the first step the policy is the reference; if the numbers say otherwise, they are of another model."""
    limit = _PER_TOKEN_TOLERANCE[precision]
    if disagreement.per_token > limit:
        raise DataError(
            f"at step 0 policy and reference differ by {disagreement.per_token:.3g} per token on row "
            f"{disagreement.row_id}, where they must agree (tolerance {limit:g})",
            code="ReferenceMismatch",
            hint="Remove the stage's `reference` directory, so that it is computed anew, and try again.",
        )


def _names(row_ids: Sequence[str]) -> str:
    return ", ".join(row_ids[:_NAMES_SHOWN]) + (", ..." if len(row_ids) > _NAMES_SHOWN else "")
