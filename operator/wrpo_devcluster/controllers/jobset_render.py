"""Rendering of the Jobs and the Service of a JobSet: names, labels, and host names of pods."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.objects import owner_reference

PREFIX = "jobset.sigs.k8s.io"
JOBSET_NAME = f"{PREFIX}/jobset-name"
REPLICATED_JOB = f"{PREFIX}/replicatedjob-name"
RESTART_ATTEMPT = f"{PREFIX}/restart-attempt"
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
MAX_NAME = 63
RANDOM_SUFFIX = 6
"""A dash and the five characters that the Job controller adds to the name of a pod."""


def job_name(jobset: str, replicated: str, index: int) -> str:
    """Return the name of a Job: that of the JobSet and of the replicated job, and an index."""
    return f"{jobset}-{replicated}-{index}"


def replicated_jobs(jobset: JsonObject) -> list[JsonObject]:
    """Return the entries of a JobSet's `replicatedJobs`."""
    return list(jobset["spec"].get("replicatedJobs") or [])


def replicas_of(entry: JsonObject) -> int:
    """Return the number of Jobs of an entry."""
    return int(entry.get("replicas", 1))


def subdomain_of(jobset: JsonObject) -> str:
    """Return the name of the Service and of the pods' domain; empty if pods have no host names."""
    network = jobset["spec"].get("network") or {}
    if not network.get("enableDNSHostnames", True):
        return ""
    return str(network.get("subdomain") or jobset["metadata"]["name"])


def refusal(jobset: JsonObject) -> str:
    """Return why JobSet's webhook would refuse the object, or why it is not run here; empty if it is run."""
    spec, name = jobset["spec"], jobset["metadata"]["name"]
    policy = spec.get("failurePolicy") or {}
    if policy.get("restartStrategy") == "InPlaceRestart":
        return "spec.failurePolicy.restartStrategy is InPlaceRestart, which is not supported here; use Recreate"
    for rule in policy.get("rules") or []:
        if rule["action"].startswith("RestartJob") and not rule["action"].startswith("RestartJobSet"):
            place = f"action {rule['action']} of failure policy rule {rule['name']}"
            return f"{place} is not supported here; use RestartJobSet"
    if spec.get("volumeClaimPolicies"):
        return "spec.volumeClaimPolicies is set, but the embedded cluster creates no claims; create them yourself"
    if (spec.get("startupPolicy") or {}).get("startupPolicyOrder") == "InOrder":
        return "spec.startupPolicy.startupPolicyOrder is InOrder, which is not supported here; use dependsOn"
    if EXCLUSIVE in (jobset["metadata"].get("annotations") or {}):
        return f"annotation {EXCLUSIVE} is set, but the embedded cluster does not place pods by it; remove it"
    sizes = ((entry, (entry["template"].get("spec") or {}).get("completions")) for entry in replicated_jobs(jobset))
    found = (too_long(name, entry["name"], replicas=replicas_of(entry), completions=size) for entry, size in sizes)
    return next((text for text in found if text), "")


def too_long(jobset: str, replicated: str, *, replicas: int, completions: int | None) -> str:
    """Return how JobSet's webhook refuses a name that leaves no room for those of Jobs or pods; empty if it fits."""
    job = job_name(jobset, replicated, replicas - 1)
    if len(job) > MAX_NAME:
        return "JobSet name is too long, job names generated for this JobSet will exceed 63 characters"
    if completions and len(f"{job}-{completions - 1}") + RANDOM_SUFFIX > MAX_NAME:
        return "JobSet name is too long, pod names generated for this JobSet will exceed 63 characters"
    return ""


def render_service(owner: JsonObject, name: str, *, publish_not_ready: bool = True) -> JsonObject:
    """Return the headless Service that gives the pods host names."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": publish_not_ready,
            "selector": {JOBSET_NAME: owner["metadata"]["name"]},
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Place of a Job in its JobSet."""

    entries: list[JsonObject]
    """The replicated jobs."""
    entry: JsonObject
    """The one of them to which the Job belongs."""
    index: int
    restarts: int = 0
    """How often the JobSet was restarted."""


def render_job(owner: JsonObject, place: Place, *, subdomain: str) -> JsonObject:
    """Return the Job of a place; it is suspended as its owner is."""
    entry = place.entry
    template = copy.deepcopy(entry["template"])
    meta, spec = template.get("metadata") or {}, template["spec"]
    names = place_labels(owner, place)
    pod = spec["template"]
    pod["metadata"] = _named(pod.get("metadata") or {}, names)
    pod["spec"].setdefault("restartPolicy", "OnFailure")
    if subdomain:
        pod["spec"]["subdomain"] = subdomain
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            **_named(meta, names),
            "name": job_name(owner["metadata"]["name"], entry["name"], place.index),
            "namespace": owner["metadata"]["namespace"],
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {"completionMode": "Indexed", **spec, "suspend": bool(owner["spec"].get("suspend"))},
    }


def place_labels(owner: JsonObject, place: Place) -> dict[str, str]:
    """Return the labels, which are annotations as well, of a Job and of its pods."""
    entries, entry, index = place.entries, place.entry, place.index
    meta, group = owner["metadata"], entry.get("groupName") or "default"
    before = entries[: entries.index(entry)]
    in_group = [other for other in entries if (other.get("groupName") or "default") == group]
    before_in_group = [other for other in before if other in in_group]
    key = f"{meta['namespace']}/{job_name(meta['name'], entry['name'], index)}"
    return {
        JOBSET_NAME: meta["name"],
        f"{PREFIX}/jobset-uid": meta["uid"],
        REPLICATED_JOB: entry["name"],
        f"{PREFIX}/replicatedjob-replicas": str(replicas_of(entry)),
        f"{PREFIX}/global-replicas": str(sum(map(replicas_of, entries))),
        f"{PREFIX}/job-index": str(index),
        f"{PREFIX}/job-global-index": str(sum(map(replicas_of, before)) + index),
        f"{PREFIX}/job-key": hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest(),
        f"{PREFIX}/group-name": group,
        f"{PREFIX}/group-replicas": str(sum(map(replicas_of, in_group))),
        f"{PREFIX}/job-group-index": str(sum(map(replicas_of, before_in_group)) + index),
        RESTART_ATTEMPT: str(place.restarts),
    }


def _named(meta: JsonObject, names: dict[str, str]) -> JsonObject:
    return {
        "labels": {**(meta.get("labels") or {}), **names},
        "annotations": {**(meta.get("annotations") or {}), **names},
    }
