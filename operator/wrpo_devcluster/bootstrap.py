"""Initial objects of a cluster: nodes, namespaces, the storage class, and the selected CRDs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import yaml

from wrpo_devcluster.client import CRDS, NAMESPACES, NODES, ApiError, Client, JsonObject, Resource
from wrpo_devcluster.clock import timestamp
from wrpo_devcluster.config import NodeConfig
from wrpo_devcluster.controllers.base import get_or_none
from wrpo_devcluster.controllers.volumes import PROVISIONER, STORAGE_CLASS, STORAGE_CLASSES

MANIFESTS = Path(__file__).parent / "manifests"
PRESETS = {
    "pytorchjob": MANIFESTS / "pytorchjobs.yaml",
    "trainjob": MANIFESTS / "trainjobs.yaml",
    "jobset": MANIFESTS / "jobsets.yaml",
}
"""CRDs that `up` installs by default, by their name in `--with-crds`."""


_NODE_INFO = {
    "architecture": "amd64",
    "bootID": "",
    "containerRuntimeVersion": "process://1",
    "kernelVersion": "",
    "kubeProxyVersion": "",
    "kubeletVersion": "v1.36.0",
    "machineID": "",
    "operatingSystem": "linux",
    "osImage": "processes of this machine",
    "systemUUID": "",
}


def node_object(node: NodeConfig, now: datetime) -> JsonObject:
    """Return a node as its kubelet would register it, ready since `now`."""
    own = {"cpu": node.cpu, "memory": node.memory, "ephemeral-storage": node.disk, "pods": str(node.pods)}
    amounts = {**own, **node.extended}
    if node.gpus:
        amounts["nvidia.com/gpu"] = str(node.gpus)
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "kubelet is posting ready status",
        "lastHeartbeatTime": timestamp(now),
        "lastTransitionTime": timestamp(now),
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                **node.labels,
            },
        },
        "spec": {"taints": [dict(t) for t in node.taints]} if node.taints else {},
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [ready],
            "nodeInfo": _NODE_INFO,
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": node.name},
            ],
        },
    }


async def ensure_cluster_objects(client: Client, nodes: Iterable[NodeConfig], now: datetime) -> None:
    """Create the namespaces and nodes that are missing, and delete nodes that are no longer configured."""
    for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
        await _ensure(client, NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    wanted = {node.name: node_object(node, now) for node in nodes}
    for existing in await client.list(NODES):
        if existing["metadata"]["name"] not in wanted:
            await client.delete(NODES, existing["metadata"]["name"])
    for name, node in wanted.items():
        await _ensure(client, NODES, node)
        await client.patch(NODES, name, None, {"status": node["status"]}, subresource="status")
        await client.patch(
            NODES, name, None, {"metadata": {"labels": node["metadata"]["labels"]}, "spec": node["spec"]}
        )
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    }
    await _ensure(client, STORAGE_CLASSES, storage_class)


def crd_files(choice: str) -> list[Path]:
    """Return the manifests of `--with-crds`: a preset's name, a file, or a directory of YAML files."""
    if choice in PRESETS:
        return [PRESETS[choice]]
    path = Path(choice)
    if path.is_dir():
        return sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    if path.is_file():
        return [path]
    known = ", ".join(sorted(PRESETS))
    raise ValueError(f"--with-crds is {choice!r} but must be a file, a directory or one of: {known}")


async def install_crds(client: Client, files: Iterable[Path]) -> list[str]:
    """Create or replace the CRDs in these files; return their names."""
    names = []
    for file in files:
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if not document or document.get("kind") != "CustomResourceDefinition":
                continue
            name = document["metadata"]["name"]
            names.append(name)
            if not await _ensure(client, CRDS, document):
                await client.patch(CRDS, name, None, document, kind="apply", force=True)
    return names


async def _ensure(client: Client, resource: Resource, body: JsonObject) -> bool:
    """Create the object unless it exists; True if it was created."""
    if await get_or_none(client, resource, body["metadata"]["name"]) is not None:
        return False
    try:
        await client.create(resource, body)
    except ApiError as error:
        if error.reason == "AlreadyExists":
            return False
        raise
    return True
