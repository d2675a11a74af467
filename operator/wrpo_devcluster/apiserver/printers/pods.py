"""Cells of the pod table."""

from __future__ import annotations

from datetime import datetime

from wrpo_devcluster.apiserver.printers.rows import NONE, Row, age, human_duration, parse, status_of
from wrpo_devcluster.client import JsonObject


def _container_reason(statuses: list[JsonObject]) -> tuple[str, bool]:
    """Return the most relevant state among containers, and whether one of them runs and is ready."""
    reason, running = "", False
    for status in reversed(statuses):
        state = status.get("state") or {}
        if (state.get("waiting") or {}).get("reason"):
            reason = state["waiting"]["reason"]
        elif "terminated" in state:
            ended = state["terminated"] or {}
            reason = ended.get("reason") or (
                f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"
            )
        elif status.get("ready") and "running" in state:
            running = True
    return reason, running


def _init_reason(obj: JsonObject) -> str:
    """Return the reason while init containers have not completed."""
    total = len(obj["spec"].get("initContainers") or ())
    for index, status in enumerate(status_of(obj).get("initContainerStatuses") or ()):
        state = status.get("state") or {}
        ended = state.get("terminated")
        if ended is not None and ended.get("exitCode", 0) == 0:
            continue
        if ended is not None:
            return f"Init:{ended.get('reason') or 'ExitCode:' + str(ended.get('exitCode'))}"
        waiting = (state.get("waiting") or {}).get("reason", "")
        if waiting and waiting != "PodInitializing":
            return f"Init:{waiting}"
        return f"Init:{index}/{total}"
    return ""


def pod_reason(obj: JsonObject) -> str:
    """Return the STATUS column of pods."""
    status = status_of(obj)
    reason: str = status.get("reason") or status.get("phase", "")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "SchedulingGated":
            reason = "SchedulingGated"
    init = _init_reason(obj)
    if init:
        reason = init
    else:
        found, running = _container_reason(status.get("containerStatuses") or [])
        reason = found or reason
        if reason == "Completed" and running:
            ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())
            reason = "Running" if ready else "NotReady"
    if obj["metadata"].get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            return "Unknown"
        if status.get("phase") not in {"Succeeded", "Failed"}:
            return "Terminating"
    return reason


def pod_row(obj: JsonObject, now: datetime) -> Row:
    """Return the row that `kubectl get pods` shows."""
    status, spec = status_of(obj), obj["spec"]
    statuses = status.get("containerStatuses") or []
    ready = sum(1 for s in statuses if s.get("ready") and "running" in (s.get("state") or {}))
    restarts = sum(s.get("restartCount", 0) for s in statuses)
    ends = [
        end
        for s in statuses
        if (end := parse(((s.get("lastState") or {}).get("terminated") or {}).get("finishedAt"))) is not None
    ]
    shown = (
        f"{restarts} ({human_duration((now - max(ends)).total_seconds())} ago)" if restarts and ends else str(restarts)
    )
    conditions = []
    if status.get("phase") in {"Succeeded", "Failed"}:
        message = "The pod has completed successfully." if status["phase"] == "Succeeded" else "The pod failed."
        conditions = [{"type": "Completed", "status": "True", "reason": status["phase"], "message": message}]
    cells = [
        f"{ready}/{len(spec.get('containers') or ())}",
        pod_reason(obj),
        shown,
        age(obj, now),
        status.get("podIP") or NONE,
        spec.get("nodeName") or NONE,
        status.get("nominatedNodeName") or NONE,
        _gates(obj),
    ]
    return Row(cells, conditions)


def _gates(obj: JsonObject) -> str:
    gates = obj["spec"].get("readinessGates") or ()
    if not gates:
        return NONE
    true = {c["type"] for c in status_of(obj).get("conditions") or () if c.get("status") == "True"}
    return f"{sum(gate['conditionType'] in true for gate in gates)}/{len(gates)}"
