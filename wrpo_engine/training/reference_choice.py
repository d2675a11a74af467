"""The reference of a stage: in memory, or a cached table that the untrained policy completes."""

from __future__ import annotations

from wrpo_engine.training.attempt import Attempt
from wrpo_engine.training.paths import REFERENCE_DIRECTORY
from wrpo_engine.training.reference.log_probs import (
    InMemoryReference,
    Reference,
    ReferenceCache,
    ReferencePass,
    compute_reference,
    reference_fingerprint,
)


def reference_logps(
    attempt: Attempt,
    model: str,
    forward: ReferencePass,
) -> Reference:
    """Return the reference of the rows; all ranks call this together, before the backend is restored.

    `model` is the digest of the model that the backend has loaded.
    """
    ctx, params, group = attempt.ctx, attempt.params, attempt.group
    if ctx.config.runtime.reference == "in-memory":
        return InMemoryReference(forward.backend)
    rows, layout = forward.rows, forward.plan.layout
    fingerprint = group.on_main(lambda: reference_fingerprint(model, rows, params.precision, layout))
    return compute_reference(
        forward,
        ReferenceCache(ctx.output, f"{REFERENCE_DIRECTORY}/{fingerprint}/"),
        steps_per_part=ctx.config.runtime.checkpoint_every_steps,
        should_stop=lambda: ctx.stop.requested,
        on_step=lambda done, total: ctx.progress.update(
            0, forward.plan.num_steps, message=f"reference log-probabilities: {done} of {total} batches"
        ),
    )
