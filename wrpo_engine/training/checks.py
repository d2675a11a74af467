"""Sanity checks that stop a run before damage is done: losses, gradients and changed models."""

from __future__ import annotations

from collections.abc import Sequence

from wrpo_engine.errors import DataError
from wrpo_engine.training.paths import MODEL_FIELD

_NAMES_SHOWN = 10
_HINT = "Lower the learning rate, or check these rows in the input artifact."


def loss_not_finite(step: int, row_ids: Sequence[str]) -> DataError:
    """Return the error of rows whose loss is not finite in the step that follows `step` completed ones."""
    return DataError(
        f"the loss is not finite at step {step + 1} for {len(row_ids)} rows: {_names(row_ids)}. "
        "Training stopped before the optimizer step, so the step has changed no weight",
        code="LossNotFinite",
        field="training.learningRate",
        hint=_HINT,
    )


def held_out_loss_not_finite(done: int, row_ids: Sequence[str]) -> DataError:
    """Return the error of held-out rows whose loss is not finite after `done` optimizer steps."""
    return DataError(
        f"the loss of {len(row_ids)} held-out rows is not finite after step {done}: {_names(row_ids)}",
        code="LossNotFinite",
        field="training.learningRate",
        hint=_HINT,
    )


def require_finite_gradient(grad_norm: float, step: int) -> None:
    """Raise DataError for a gradient norm that is not finite; the backend has then skipped the optimizer step."""
    if not grad_norm < float("inf"):
        raise DataError(
            f"the gradient norm is {grad_norm} at step {step + 1} although every loss is finite. "
            "Training stopped before the optimizer step, so the step has changed no weight",
            code="GradientNotFinite",
            field="training.learningRate",
            hint="Lower the learning rate, or train in float32. The next attempt resumes from the last checkpoint.",
        )


def require_same_model(step: int, saved: str | None, found: str | None, *, place: str, artifact: str) -> None:
    """Raise DataError if the model at `place` is not the one of the checkpoint; a digest is None if unknown."""
    if saved is None or found is None or saved == found:
        return
    raise DataError(
        f"the checkpoint after step {step} belongs to the model with the digest {saved}, but the model in {place} now "
        f"has the digest {found}: the policy would be trained from one model and compared with the other",
        code="ModelChanged",
        field=MODEL_FIELD,
        hint=f"Restore the previous weights to resume, or remove the unfinished artifact {artifact} to train from step "
        "0.",
    )


def _names(row_ids: Sequence[str]) -> str:
    return ", ".join(row_ids[:_NAMES_SHOWN]) + (", ..." if len(row_ids) > _NAMES_SHOWN else "")
