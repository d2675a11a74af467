"""The reference's log-probabilities for a stage: from the work directory, or from one pass of the untrained policy."""

from __future__ import annotations

from collections.abc import Sequence

from wrpo_engine.config import OptimizerParams
from wrpo_engine.models import ResolvedModel
from wrpo_engine.stage import StageContext
from wrpo_engine.training.backend import Backend
from wrpo_engine.training.batching import BatchPlan
from wrpo_engine.training.checkpoint import Checkpoint
from wrpo_engine.training.collectives import Group
from wrpo_engine.training.places import REFERENCE_DIRECTORY
from wrpo_engine.training.reference import ReferenceCache, ReferenceLogps, compute_reference, reference_fingerprint
from wrpo_engine.training.rows import TokenRow


def reference_logps(
    ctx: StageContext,
    params: OptimizerParams,
    base: ResolvedModel,
    rows: Sequence[TokenRow],
    plan: BatchPlan,
    backend: Backend,
    group: Group,
    checkpoint: Checkpoint | None,
) -> ReferenceLogps:
    """Return the table of all rows; called on all ranks together, before the backend is restored."""

    def fingerprint() -> str:
        return reference_fingerprint(sorted(base.path.glob("*.safetensors")), rows, params.precision)

    cache = ReferenceCache(ctx.output.directory / REFERENCE_DIRECTORY / group.on_main(fingerprint))
    if checkpoint is not None:
        # The weights in memory have moved: only the cache can say what the reference was.
        table = group.on_main(lambda: cache.load(len(rows), len(rows[0].responses)))
        table.require_complete(rows)
        return table
    return compute_reference(
        backend,
        rows,
        plan,
        cache,
        group,
        steps_per_part=ctx.config.runtime.checkpoint_every_steps,
        should_stop=lambda: ctx.stop.requested,
        on_step=lambda done, total: ctx.progress.update(
            0, plan.num_steps, message=f"reference log-probabilities: {done} of {total} batches"
        ),
    )
