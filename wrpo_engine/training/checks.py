"""What stops a run before damage is done: losses, gradients and models that cannot be right."""

from __future__ import annotations

from collections.abc import Sequence

from wrpo_engine.errors import DataError
from wrpo_engine.training.paths import MODEL_FIELD

_NAMES_SHOWN = 10


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


def require_same_model(step: int, saved: str | None, found: str | None, *, place: str, artifact: str) -> None:
    """Stop a run whose model directory is another one than when its checkpoint was written; None: nobody knows."""
    if saved is None or found is None or saved == found:
        return
    raise DataError(
        f"the checkpoint after step {step} comes of the model with the digest {saved}, but {place} now holds one with "
        f"the digest {found}: the policy would be trained from the one and compared with the other",
        code="ModelChanged",
        field=MODEL_FIELD,
        hint=f"Put the former weights back to continue, or remove the unfinished {artifact} to train "
        "from the beginning.",
    )


def _names(row_ids: Sequence[str]) -> str:
    return ", ".join(row_ids[:_NAMES_SHOWN]) + (", ..." if len(row_ids) > _NAMES_SHOWN else "")
