"""State that comes back from checkpoints: of the step an attempt resumes at, and of the best step before the export."""

from __future__ import annotations

import logging

from wrpo_engine.training.backends.base import Backend
from wrpo_engine.training.checkpoint.format import Checkpoint
from wrpo_engine.training.checkpoint.manager import CheckpointStore
from wrpo_engine.training.evaluation import Evaluation
from wrpo_engine.training.loop import TrainingOutcome, TrainingRun
from wrpo_engine.training.objectives.divergence import RewardDivergence

log = logging.getLogger("wrpo_engine")


def restore_run(
    checkpoint: Checkpoint,
    checkpoints: CheckpointStore,
    backend: Backend,
    evaluation: Evaluation | None,
    divergence: RewardDivergence | None,
) -> None:
    """Put everything back as it was after the checkpoint's step."""
    backend.restore(checkpoint.step, checkpoint.read)
    state = checkpoint.state
    if divergence is not None and state.get("divergence") is not None:
        divergence.restore(state["divergence"])
    if evaluation is None or state.get("evaluations") is None:
        return
    evaluation.history.restore(state["evaluations"])
    best_step = evaluation.history.best_step
    if not evaluation.history.params.keep_best or best_step is None:
        return
    if best_step == checkpoint.step:
        checkpoints.mark_best(best_step)
        return
    best = checkpoints.best()
    if best is not None and best.step == checkpoint.step and state.get("evaluation_due"):
        # An attempt that was killed later made up for this step's evaluation, as this one will, and found it better.
        return
    if best is None or best.step != best_step:
        log.warning("the checkpoint of step %d, the best so far, is lost; only later ones can be the best", best_step)
        evaluation.history.forget_best()


def take_best(run: TrainingRun, outcome: TrainingOutcome) -> int:
    """Put the best checkpoint's weights into the backend if they are to be exported; return the exported step."""
    evaluation = run.evaluation
    if evaluation is None or not evaluation.history.params.keep_best:
        return outcome.num_steps
    best_step = evaluation.history.best_step
    if best_step is None or best_step == outcome.num_steps:
        return outcome.num_steps
    best = run.checkpoints.best()
    if best is None or best.step != best_step:
        if run.group.is_main:
            log.warning("the checkpoint of step %d, the best one, is lost; the last weights are exported", best_step)
        return outcome.num_steps
    run.backend.restore(best.step, best.read)
    if run.group.is_main:
        log.info("exporting the weights after step %d, which had the lowest held-out loss", best_step)
    return best_step
