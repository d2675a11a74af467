"""Rendering of the pods and Services of a PyTorchJob: names, labels, and torchrun's environment."""

from __future__ import annotations

import copy

from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.objects import owner_reference

JOB_NAME = "training.kubeflow.org/job-name"
OPERATOR_NAME = "training.kubeflow.org/operator-name"
REPLICA_TYPE = "training.kubeflow.org/replica-type"
REPLICA_INDEX = "training.kubeflow.org/replica-index"
JOB_ROLE = "training.kubeflow.org/job-role"
CONTAINER = "pytorch"
PORT_NAME = "pytorchjob-port"
DEFAULT_PORT = 23456

_WAIT_FOR_MASTER = (
    "err=1; for i in $(seq 100); do if nslookup {master}; then err=0 && break; fi; "
    "echo waiting for master; sleep 2; done; exit $err"
)


def replica_name(job: JsonObject, role: str, index: int) -> str:
    """Return the name of a replica's pod and of its Service."""
    return f"{job['metadata']['name']}-{role.lower()}-{index}"


def replica_labels(job: JsonObject, role: str, index: int) -> dict[str, str]:
    """Return the labels of a replica. The first one without a master has the master's role."""
    labels = {
        JOB_NAME: job["metadata"]["name"],
        OPERATOR_NAME: "pytorchjob-controller",
        REPLICA_TYPE: role.lower(),
        REPLICA_INDEX: str(index),
    }
    specs = job["spec"]["pytorchReplicaSpecs"]
    if role == "Master" or ("Master" not in specs and index == 0):
        labels[JOB_ROLE] = "master"
    return labels


def render_service(job: JsonObject, role: str, index: int, *, port: int) -> JsonObject:
    """Return the headless Service that gives a replica its host name."""
    labels = replica_labels(job, role, index)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": replica_name(job, role, index),
            "namespace": job["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": [{"name": PORT_NAME, "port": port, "targetPort": port, "protocol": "TCP"}],
        },
    }


def render_pod(
    job: JsonObject, role: str, index: int, *, default_port: int = DEFAULT_PORT, wait_for_master: bool = True
) -> JsonObject:
    """Return a replica's pod. The init container that waits for the master is not restricted, as Kubeflow's is not."""
    specs = job["spec"]["pytorchReplicaSpecs"]
    template = copy.deepcopy(specs[role]["template"])
    meta, spec = template.get("metadata") or {}, template["spec"]
    port = master_port(job, default_port)
    env = distributed_env(job, role, index, port=port)
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        own = {entry["name"] for entry in container.get("env") or []}
        container["env"] = [*(container.get("env") or []), *(e for e in env if e["name"] not in own)]
        if container["name"] == CONTAINER and not any(p.get("name") == PORT_NAME for p in container.get("ports") or []):
            container["ports"] = [*(container.get("ports") or []), {"name": PORT_NAME, "containerPort": port}]
    if wait_for_master and role == "Worker" and "Master" in specs:
        spec["initContainers"] = [*(spec.get("initContainers") or []), _init_container(replica_name(job, "Master", 0))]
    policy = specs[role].get("restartPolicy") or "OnFailure"
    # The operator implements ExitCode itself; for the kubelet such a pod never restarts.
    spec["restartPolicy"] = "Never" if policy == "ExitCode" else policy
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": replica_name(job, role, index),
            "namespace": job["metadata"]["namespace"],
            "labels": {**(meta.get("labels") or {}), **replica_labels(job, role, index)},
            **({"annotations": meta["annotations"]} if meta.get("annotations") else {}),
            "ownerReferences": [owner_reference(job)],
        },
        "spec": spec,
    }


def master_port(job: JsonObject, default: int = DEFAULT_PORT) -> int:
    """Return the container port named pytorchjob-port, else the default."""
    specs = job["spec"]["pytorchReplicaSpecs"]
    lead = specs.get("Master") or specs.get("Worker")
    for container in lead["template"]["spec"]["containers"]:
        for port in container.get("ports") or []:
            if container["name"] == CONTAINER and port.get("name") == PORT_NAME:
                return int(port["containerPort"])
    return default


def distributed_env(job: JsonObject, role: str, index: int, *, port: int) -> list[JsonObject]:
    """Return the environment of one replica: WORLD_SIZE and RANK count nodes unless nprocPerNode is a number."""
    specs = job["spec"]["pytorchReplicaSpecs"]
    nodes = sum(int(spec.get("replicas", 1)) for spec in specs.values())
    per_node = str(job["spec"].get("nprocPerNode") or "auto")
    lead = "Master" if "Master" in specs else "Worker"
    rank = index if role == lead else index + int(specs[lead].get("replicas", 1))
    address = replica_name(job, lead, 0)
    values = {
        "PYTHONUNBUFFERED": "1",
        "MASTER_PORT": str(port),
        "PET_MASTER_PORT": str(port),
        "MASTER_ADDR": address,
        "PET_MASTER_ADDR": address,
        "WORLD_SIZE": str(nodes * (int(per_node) if per_node.isdigit() else 1)),
        "RANK": str(rank),
        "PET_NPROC_PER_NODE": per_node,
        "PET_NODE_RANK": str(rank),
        "PET_NNODES": str(nodes),
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _init_container(master: str) -> JsonObject:
    return {
        "name": "init-pytorch",
        "image": "alpine:3.10",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", _WAIT_FOR_MASTER.format(master=master)],
        "resources": {
            "limits": {"cpu": "100m", "memory": "20Mi"},
            "requests": {"cpu": "50m", "memory": "10Mi"},
        },
    }
