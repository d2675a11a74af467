"""Stages that another experiment of the same sweep has finished: taken over without a pod. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wrpo_operator.api.status import StageStatus
from wrpo_operator.plan.model import Experiment, Snapshot, StageNode


def with_shared(snapshot: Snapshot, graph: Sequence[StageNode]) -> Experiment:
    """Return the experiment with the finished stages of its siblings in its status.

    Its own record and children take precedence: a stage that it has attempted is not taken over.
    """
    experiment = snapshot.experiment
    if not snapshot.shared:
        return experiment
    attempted = {(child.stage, child.stage_hash) for child in snapshot.children}
    attempted |= {(stage.name, stage.hash) for stage in experiment.status.stages if stage.attempts}
    taken: dict[str, StageStatus] = {}
    for node in graph:
        place = (str(node.id), node.hash)
        if place in snapshot.shared and place not in attempted:
            taken[place[0]] = snapshot.shared[place]
    if not taken:
        return experiment
    kept = [stage for stage in experiment.status.stages if stage.name not in taken]
    status = experiment.status.model_copy(update={"stages": (*kept, *taken.values())})
    return replace(experiment, status=status)
