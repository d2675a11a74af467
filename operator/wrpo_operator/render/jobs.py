"""Stages as batch/v1 Jobs: one pod, or one indexed pod per shard."""

from __future__ import annotations

from typing import Any

from wrpo_engine.contract.definition import Shape
from wrpo_engine.exit_codes import FINAL_EXIT_CODES
from wrpo_operator.api.pod_template import STAGE_CONTAINER
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.model import Manifest, PlannedAttempt
from wrpo_operator.render.common import child_metadata
from wrpo_operator.render.pod import ChildRequest, pod_template

FINAL_CODE_RULE: dict[str, Any] = {
    "action": "FailJob",
    "onExitCodes": {"containerName": STAGE_CONTAINER, "operator": "In", "values": list(FINAL_EXIT_CODES)},
}

POD_FAILURE_POLICY: dict[str, Any] = {
    "rules": [
        # Preemption, eviction and node loss first: the pod is replaced and no retry is used up.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        FINAL_CODE_RULE,
    ]
}


def render_job(request: ChildRequest) -> Manifest:
    """Return the Job of an attempt."""
    spec, planned = request.spec, request.planned
    job: dict[str, Any] = {
        **_completion(spec, planned),
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": POD_FAILURE_POLICY,
        "template": pod_template(request),
    }
    queue = spec.scheduling.queue_name
    if not queue:  # with a queue, Kueue owns suspend
        job["suspend"] = planned.suspend
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(request.experiment, planned, spec.scheduling, job),
        "spec": job,
    }


def _completion(spec: ExperimentSpec, planned: PlannedAttempt) -> dict[str, Any]:
    if planned.node.shape is not Shape.INDEXED_JOB:
        # The operator creates the next attempt, so that each has its own name, logs and record.
        return {"completions": 1, "parallelism": 1, "backoffLimit": 0}
    shards = planned.node.runtime.shards
    return {
        "completionMode": "Indexed",
        "completions": shards,
        "parallelism": shards,
        # One retry in place, so that a failed shard does not stop the others.
        "backoffLimitPerIndex": min(1, spec.retries.limit),
    }
