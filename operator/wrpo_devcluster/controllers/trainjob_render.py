"""Rendering of a TrainJob's Job, as Kubeflow Trainer (2.x) and JobSet together make it."""

from __future__ import annotations

import copy
from typing import Any

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.controllers import jobset_render

CONTAINER = "node"
"""Name of the trainer's container, and of its replicated job."""
ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
DEFAULT_PORT = 29500
COMPLETION_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def job_name(trainjob: JsonObject) -> str:
    """Return the name of the one Job that runs a TrainJob."""
    return jobset_render.job_name(trainjob["metadata"]["name"], CONTAINER, 0)


def unsupported(trainjob: JsonObject, runtime: JsonObject) -> str:
    """Return why this controller does not run the job although Trainer might; empty if it runs."""
    spec, policy = trainjob["spec"], runtime["spec"].get("mlPolicy") or {}
    if spec.get("initializer"):
        return "spec.initializer is set, but the embedded cluster runs no initializers; remove it"
    if any(patch.get("trainingRuntimeSpec") for patch in spec.get("runtimePatches") or []):
        return "spec.runtimePatches is set, but the embedded cluster applies no patches; change the runtime itself"
    other = sorted({"flux", "jax", "mpi", "xgboost"} & set(policy))
    if other:
        return f"the runtime's mlPolicy.{other[0]} is not supported by the embedded cluster; use mlPolicy.torch"
    jobs = replicated_jobs(runtime)
    if [(entry["name"], int(entry.get("replicas", 1))) for entry in jobs] != [(CONTAINER, 1)]:
        names = ", ".join(str(entry["name"]) for entry in jobs) or "none"
        return f"the runtime's replicatedJobs are {names} but must be one named {CONTAINER} with replicas 1"
    if trainer_container(jobs[0]["template"]) is None:
        return f"the runtime's replicated job {CONTAINER} has no container named {CONTAINER}"
    nodes = num_nodes(trainjob, runtime)
    return jobset_render.too_long(trainjob["metadata"]["name"], CONTAINER, replicas=1, completions=nodes)


def replicated_jobs(runtime: JsonObject) -> list[JsonObject]:
    """Return the entries of a runtime's `replicatedJobs`."""
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


def render_job(trainjob: JsonObject, runtime: JsonObject, *, port: int = DEFAULT_PORT) -> JsonObject:
    """Return the Indexed Job of the replicated job `node`: one pod a node, whose master is the pod of index 0."""
    entry = copy.deepcopy(replicated_jobs(runtime)[0])
    template, nodes = entry["template"], num_nodes(trainjob, runtime)
    container = trainer_container(template)
    if container is None:
        raise ValueError(f"the replicated job has no container named {CONTAINER}")
    _override(container, trainjob["spec"].get("trainer") or {})
    if "torch" in (runtime["spec"].get("mlPolicy") or {}):
        _add_torch(container, trainjob, nodes=nodes, port=port)
    template["spec"] |= {"completionMode": "Indexed", "parallelism": nodes, "completions": nodes}
    place = jobset_render.Place(entries=[entry], entry=entry, index=0)
    return jobset_render.render_job(trainjob, place, subdomain=trainjob["metadata"]["name"])


def _override(container: JsonObject, trainer: JsonObject) -> None:
    """Override the runtime's container with the TrainJob's trainer, in place."""
    for field in ("image", "command", "args"):
        if trainer.get(field):
            container[field] = trainer[field]
    if trainer.get("resourcesPerNode"):
        container["resources"] = trainer["resourcesPerNode"]
    _upsert(container, "env", trainer.get("env") or [])


def _add_torch(container: JsonObject, trainjob: JsonObject, *, nodes: int, port: int) -> None:
    """Add the variables that torchrun reads, in place. They replace the job's variables of the same names."""
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
