"""Job and Service of a TrainJob: what Kubeflow Trainer (2.x) and JobSet make of it together."""

from __future__ import annotations

import copy
from typing import Any

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.objects import owner_reference

CONTAINER = "node"
"""Name of the trainer's container, and of its replicated job."""
ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
DEFAULT_PORT = 29500
JOBSET_NAME = "jobset.sigs.k8s.io/jobset-name"
COMPLETION_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def job_name(trainjob: JsonObject) -> str:
    return f"{trainjob['metadata']['name']}-{CONTAINER}-0"


def unsupported(trainjob: JsonObject, runtime: JsonObject) -> str:
    """Return why this controller does not run the job though Trainer might; empty if it does."""
    spec, policy = trainjob["spec"], runtime["spec"].get("mlPolicy") or {}
    if spec.get("initializer"):
        return "spec.initializer is set, and initializers are not run here; remove it"
    if any(patch.get("trainingRuntimeSpec") for patch in spec.get("runtimePatches") or []):
        return "spec.runtimePatches is set, and patches are not applied here; change the runtime itself"
    other = sorted({"flux", "jax", "mpi", "xgboost"} & set(policy))
    if other:
        return f"the runtime's mlPolicy.{other[0]} is not known here; use mlPolicy.torch"
    jobs = replicated_jobs(runtime)
    if [(entry["name"], int(entry.get("replicas", 1))) for entry in jobs] != [(CONTAINER, 1)]:
        names = ", ".join(str(entry["name"]) for entry in jobs) or "none"
        return f"the runtime's replicatedJobs are {names}, and here it must be one named {CONTAINER} with replicas 1"
    if trainer_container(jobs[0]["template"]) is None:
        return f"the runtime's replicated job {CONTAINER} has no container named {CONTAINER}"
    return ""


def replicated_jobs(runtime: JsonObject) -> list[JsonObject]:
    template = runtime["spec"].get("template") or {}
    return list((template.get("spec") or {}).get("replicatedJobs") or [])


def trainer_container(job_template: JsonObject) -> JsonObject | None:
    """Return the container named `node` of a job template; the object itself, to be changed in place."""
    pod = ((job_template.get("spec") or {}).get("template") or {}).get("spec") or {}
    return next((c for c in pod.get("containers") or [] if c["name"] == CONTAINER), None)


def num_nodes(trainjob: JsonObject, runtime: JsonObject) -> int:
    """Return the TrainJob's numNodes, else the runtime's, else 1."""
    own = (trainjob["spec"].get("trainer") or {}).get("numNodes")
    return int(own or (runtime["spec"].get("mlPolicy") or {}).get("numNodes") or 1)


def render_service(trainjob: JsonObject) -> JsonObject:
    """Return the headless Service by which the pods have names, before they are ready."""
    name = trainjob["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": trainjob["metadata"]["namespace"],
            "labels": {JOBSET_NAME: name},
            "ownerReferences": [owner_reference(trainjob)],
        },
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {JOBSET_NAME: name}},
    }


def render_job(trainjob: JsonObject, runtime: JsonObject, *, port: int = DEFAULT_PORT) -> JsonObject:
    """Return the Indexed Job of the replicated job `node`: one pod a node, whose master is the pod of index 0."""
    name = trainjob["metadata"]["name"]
    template = copy.deepcopy(replicated_jobs(runtime)[0]["template"])
    meta, spec = template.get("metadata") or {}, template["spec"]
    nodes = num_nodes(trainjob, runtime)
    container = trainer_container(template)
    if container is None:
        raise ValueError(f"the replicated job has no container named {CONTAINER}")
    _override(container, trainjob["spec"].get("trainer") or {})
    if "torch" in (runtime["spec"].get("mlPolicy") or {}):
        _add_torch(container, trainjob, nodes=nodes, port=port)
    labels = _labels(name)
    pod = spec["template"]
    pod["metadata"] = {
        **(pod.get("metadata") or {}),
        "labels": {**((pod.get("metadata") or {}).get("labels") or {}), **labels},
    }
    pod["spec"].setdefault("restartPolicy", "OnFailure")
    pod["spec"].setdefault("subdomain", name)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            **{key: meta[key] for key in ("annotations",) if meta.get(key)},
            "name": job_name(trainjob),
            "namespace": trainjob["metadata"]["namespace"],
            "labels": {**(meta.get("labels") or {}), **labels},
            "ownerReferences": [owner_reference(trainjob)],
        },
        "spec": {
            **spec,
            "completionMode": "Indexed",
            "parallelism": nodes,
            "completions": nodes,
            "suspend": bool(trainjob["spec"].get("suspend")),
        },
    }


def _labels(name: str) -> dict[str, str]:
    prefix = "jobset.sigs.k8s.io"
    return {
        JOBSET_NAME: name,
        f"{prefix}/replicatedjob-name": CONTAINER,
        f"{prefix}/replicatedjob-replicas": "1",
        f"{prefix}/job-index": "0",
        f"{prefix}/job-global-index": "0",
        f"{prefix}/restart-attempt": "0",
    }


def _override(container: JsonObject, trainer: JsonObject) -> None:
    """Lay the TrainJob's trainer over the runtime's container, in place."""
    for field in ("image", "command", "args"):
        if trainer.get(field):
            container[field] = trainer[field]
    if trainer.get("resourcesPerNode"):
        container["resources"] = trainer["resourcesPerNode"]
    _upsert(container, "env", trainer.get("env") or [])


def _add_torch(container: JsonObject, trainjob: JsonObject, *, nodes: int, port: int) -> None:
    """Add the variables that torchrun reads, in place; the job's own of these names give way."""
    name = trainjob["metadata"]["name"]
    per_node = (trainjob["spec"].get("trainer") or {}).get("numProcPerNode") or "auto"
    values = {
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": str(per_node),
        "PET_MASTER_ADDR": f"{job_name(trainjob)}-0.{name}",
        "PET_MASTER_PORT": str(port),
    }
    rank = {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": COMPLETION_INDEX}}}
    _upsert(container, "env", [*({"name": key, "value": value} for key, value in values.items()), rank])
    ports = [entry for entry in container.get("ports") or [] if entry["containerPort"] != port]
    container["ports"] = [*ports, {"containerPort": port, "protocol": "TCP"}]


def _upsert(container: JsonObject, field: str, entries: list[dict[str, Any]]) -> None:
    if entries:
        names = {entry["name"] for entry in entries}
        container[field] = [*(e for e in container.get(field) or [] if e["name"] not in names), *entries]
