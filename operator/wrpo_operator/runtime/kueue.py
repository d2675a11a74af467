"""Kueue's Workloads: why a child has not been admitted, in Kueue's own words. Pure."""

from __future__ import annotations

from wrpo_operator.plan.model import Note
from wrpo_operator.runtime.resources import JsonObject, meta, name_of

JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"


def workload_owner(workload: JsonObject) -> str:
    """Return the uid of the child that a Workload stands for."""
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
        return Note(name, "WorkloadInactive", "spec.active is false: Kueue does not admit it until somebody sets it")
    evicted, admitted = conditions.get("Evicted", {}), conditions.get("Admitted", {})
    if admitted.get("status") == "True" and evicted.get("status") != "True":
        return None
    quota = conditions.get("QuotaReserved", {})
    waiting = str(quota.get("message") or "Kueue has not looked at it yet")
    if evicted.get("status") == "True":
        said = str(evicted.get("message") or "").rstrip(".")
        return Note(name, str(evicted.get("reason") or "Evicted"), f"{said}; {waiting}" if said else waiting)
    if quota.get("status") == "True":
        return Note(name, "WaitingForAdmissionChecks", str(admitted.get("message") or "admission checks are not ready"))
    reason = str(quota.get("reason") or "Pending")
    return Note(name, "WaitingForQuota" if reason == "Pending" else reason, waiting)
