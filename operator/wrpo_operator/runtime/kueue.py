"""Kueue's Workloads: why a child is not admitted, with Kueue's message. Pure."""

from __future__ import annotations

from wrpo_operator.api.conditions import Reason
from wrpo_operator.plan.model import Note
from wrpo_operator.runtime.resources import JsonObject, meta, name_of

EVICTIONS = {reason.value: reason for reason in (Reason.PREEMPTED, Reason.PODS_READY_TIMEOUT)}
"""Reasons of Kueue's condition Evicted that have a separate reason here; messages distinguish the others."""
JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"


def workload_owner(workload: JsonObject) -> str:
    """Return the uid of the child that a Workload represents."""
    for owner in meta(workload).get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner.get("uid", ""))
    return str((meta(workload).get("labels") or {}).get(JOB_UID_LABEL, ""))


def workload_note(workload: JsonObject) -> Note | None:
    """Return why a Workload does not run; None once it is admitted and not evicted."""
    conditions = {entry.get("type"): entry for entry in (workload.get("status") or {}).get("conditions") or ()}
    name = f"Workload/{name_of(workload)}"
    if (meta(workload).get("deletionTimestamp")) is not None:
        return None
    if (workload.get("spec") or {}).get("active") is False:
        text = "spec.active is false: Kueue does not admit the Workload until it is true"
        return Note(name, Reason.WORKLOAD_INACTIVE, text)
    evicted, admitted = conditions.get("Evicted", {}), conditions.get("Admitted", {})
    if admitted.get("status") == "True" and evicted.get("status") != "True":
        return None
    quota = conditions.get("QuotaReserved", {})
    waiting = str(quota.get("message") or "Kueue has not processed it yet")
    if evicted.get("status") == "True":
        said = str(evicted.get("message") or "").rstrip(".")
        reason = EVICTIONS.get(str(evicted.get("reason")), Reason.EVICTED_BY_QUEUE)
        return Note(name, reason, f"{said}; {waiting}" if said else waiting)
    if quota.get("status") == "True":
        return Note(name, Reason.WAITING_FOR_CHECKS, str(admitted.get("message") or "admission checks are not ready"))
    is_inadmissible = quota.get("reason") == Reason.INADMISSIBLE
    return Note(name, Reason.INADMISSIBLE if is_inadmissible else Reason.WAITING_FOR_QUOTA, waiting)
