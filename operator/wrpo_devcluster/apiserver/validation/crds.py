"""Status of CustomResourceDefinitions."""

from __future__ import annotations

from wrpo_devcluster.client import JsonObject

CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


def initial_status(crd: JsonObject) -> JsonObject:
    """Return the status of a CRD whose names are not accepted yet."""
    stored = [version["name"] for version in crd["spec"].get("versions") or () if version.get("storage")]
    return {"conditions": None, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}


def established(crd: JsonObject, now: str) -> JsonObject:
    """Return the status of a CRD whose names were accepted."""
    names = crd["spec"]["names"]
    old = {c["type"]: c for c in crd["status"].get("conditions") or ()}

    def condition(kind: str, reason: str, message: str) -> JsonObject:
        if old.get(kind, {}).get("status") == "True":
            return dict(old[kind])
        return {"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message}

    conditions = [
        condition("NamesAccepted", "NoConflicts", "no conflicts found"),
        condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    ]
    accepted = {key: value for key, value in names.items() if value not in (None, [], "")}
    stored = list(crd["status"].get("storedVersions") or ())
    stored += [v["name"] for v in crd["spec"]["versions"] if v.get("storage") and v["name"] not in stored]
    return {"conditions": conditions, "acceptedNames": accepted, "storedVersions": stored}


def terminating(crd: JsonObject, now: str) -> JsonObject:
    """Return the CRD in the state after a delete request, until its objects are gone."""
    condition = {
        "type": "Terminating",
        "status": "True",
        "lastTransitionTime": now,
        "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    }
    kept = [c for c in crd["status"].get("conditions") or () if c["type"] != "Terminating"]
    finalizers = list(crd["metadata"].get("finalizers") or ())
    if CLEANUP_FINALIZER not in finalizers:
        finalizers.append(CLEANUP_FINALIZER)
    return {
        **crd,
        "metadata": {**crd["metadata"], "deletionTimestamp": now, "finalizers": finalizers},
        "status": {**crd["status"], "conditions": [*kept, condition]},
    }


def deletion_in_progress(crd: JsonObject) -> JsonObject:
    """Return the status of a CRD whose objects are being deleted."""
    told = {"reason": "InstanceDeletionInProgress", "message": "CustomResource deletion is in progress"}
    conditions = [
        {**condition, **told} if condition["type"] == "Terminating" else condition
        for condition in crd["status"].get("conditions") or ()
    ]
    return {**crd["status"], "conditions": conditions}
