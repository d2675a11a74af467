"""Messages of Events: one function each."""

from __future__ import annotations


def stage_started(stage: str, attempt: int, child: str) -> str:
    """Return the message of the Event StageStarted."""
    return f"Started stage {stage} (attempt {attempt}) as {child}."


def stage_succeeded(stage: str, *, cached: bool) -> str:
    """Return the message of the Event StageSucceeded."""
    return f"Stage {stage} has succeeded{'; its artifact already existed' if cached else ''}."


def stage_retried(stage: str, attempt: int, cause: str) -> str:
    """Return the message of the Event StageRetried."""
    return f"Attempt {attempt} of stage {stage} ended: {cause}"


def stage_changed(stage: str) -> str:
    """Return the message of the Event StageChanged."""
    return f"Re-running stage {stage}: the spec or an upstream stage changed."


def reward_divergence(experiment: str, stage: str, attempt: int) -> str:
    """Return the message of the Event RewardDivergence."""
    return (
        f"Stage {stage} of experiment {experiment} (attempt {attempt}) diverges: the chosen responses become "
        "improbable while the margin grows, so the loss keeps falling while the model degrades. Lower "
        "training.learningRate, raise training.beta (IPO: training.tau), add the likelihood term (training.nllWeight), "
        f"or stop early with `training.holdout.patience`. `wrpo logs {experiment} {stage}` names the step."
    )
