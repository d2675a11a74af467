"""Strategies of built-in kinds between decoding and storing."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable
from typing import Any

from wrpo_devcluster.apiserver.schema.codec import copy_json, zero
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.schema.typed import same
from wrpo_devcluster.apiserver.validation import crds
from wrpo_devcluster.client import JsonObject

_NO_GENERATION = {
    ("", kind)
    for kind in (
        "Namespace", "Service", "Endpoints", "ConfigMap", "Secret", "ServiceAccount", "Event", "Node",
        "PersistentVolume", "PersistentVolumeClaim", "ResourceQuota", "LimitRange",
    )
} | {
    ("coordination.k8s.io", "Lease"), ("events.k8s.io", "Event"), ("storage.k8s.io", "StorageClass"),
    *(("rbac.authorization.k8s.io", kind) for kind in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")),
}  # fmt: skip
_UNCONDITIONAL_FORBIDDEN = {
    ("coordination.k8s.io", "Lease"), ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("policy", "PodDisruptionBudget"),
}  # fmt: skip
_CREATE_ON_UPDATE = {
    ("coordination.k8s.io", "Lease"), ("", "Service"), ("", "Endpoints"), ("", "Event"), ("events.k8s.io", "Event"),
    ("", "ResourceQuota"), ("", "LimitRange"),
    *(("rbac.authorization.k8s.io", kind) for kind in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")),
}  # fmt: skip
_RETURNS_DELETED = {
    ("", kind)
    for kind in ("Pod", "Service", "ServiceAccount", "PersistentVolumeClaim", "PersistentVolume", "ResourceQuota")
}
JOB_LABELS = ("batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name", "controller-uid", "job-name")


def has_generation(kind: Kind) -> bool:
    """Return whether the server counts the generations of such objects."""
    return kind.custom is not None or (kind.group, kind.kind) not in _NO_GENERATION


def needs_version(kind: Kind) -> bool:
    """Return whether a PUT must name the resourceVersion that it replaces."""
    return kind.custom is not None or (kind.group, kind.kind) in _UNCONDITIONAL_FORBIDDEN


def may_create_on_update(kind: Kind) -> bool:
    """Return whether a PUT of a missing object creates it."""
    return (kind.group, kind.kind) in _CREATE_ON_UPDATE


def returns_deleted(kind: Kind) -> bool:
    """Return whether the reply to a deletion is the object instead of a Status."""
    return (kind.group, kind.kind) in _RETURNS_DELETED


def spec_changed(kind: Kind, new: JsonObject, old: JsonObject) -> bool:
    """Return whether a change starts a new generation."""
    if kind.custom is None and "spec" in kind.node.properties:
        return not same(new.get("spec"), old.get("spec"))
    skipped = {"metadata", "apiVersion", "kind"} | ({"status"} if kind.has_status else set())
    names = (new.keys() | old.keys()) - skipped
    return any(not same(new.get(name), old.get(name)) for name in names)


def initial_status(kind: Kind) -> Any:
    """Return the status of a new object of a built-in kind; None if it has none."""
    status = kind.node.properties.get("status")
    return zero(status) if status is not None and kind.custom is None else None


def without_status(kind: Kind, obj: JsonObject) -> JsonObject:
    """Return the object for a create on the main endpoint, with the server's initial status."""
    if not kind.has_status or "status" not in obj:
        return obj
    kept = {key: value for key, value in obj.items() if key != "status"}
    status = initial_status(kind)
    if status is not None:
        kept["status"] = status
    return kept


def pod_qos(spec: JsonObject) -> str:
    """Return the quality of service class of a pod: Guaranteed, Burstable or BestEffort."""
    guaranteed = True
    seen = False
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        counted = {name for name in (*limits, *requests) if name in {"cpu", "memory"}}
        seen = seen or bool(counted)
        for name in ("cpu", "memory"):
            if name not in limits or requests.get(name, limits[name]) != limits[name]:
                guaranteed = False
    if not seen:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _prepare_pod(obj: JsonObject) -> None:
    obj["status"] = {"phase": "Pending", "qosClass": pod_qos(obj["spec"])}


def _prepare_job(obj: JsonObject) -> None:
    spec, meta = obj["spec"], obj["metadata"]
    template = spec["template"]
    if not spec.get("manualSelector"):
        values = (meta["uid"], meta["name"], meta["uid"], meta["name"])
        labels = {
            **((template.get("metadata") or {}).get("labels") or {}),
            **dict(zip(JOB_LABELS, values, strict=True)),
        }
        template["metadata"] = {**(template.get("metadata") or {}), "labels": labels}
        spec["selector"] = {"matchLabels": {JOB_LABELS[0]: meta["uid"]}}
    own = (template.get("metadata") or {}).get("labels")
    if not meta.get("labels") and own:
        meta["labels"] = dict(own)
    obj["status"] = {}


def _prepare_namespace(obj: JsonObject) -> None:
    finalizers = obj["spec"].get("finalizers") or []
    obj["spec"]["finalizers"] = finalizers if "kubernetes" in finalizers else [*finalizers, "kubernetes"]
    obj["status"] = {"phase": "Active"}


def _prepare_secret(obj: JsonObject) -> None:
    plain = obj.pop("stringData", None)
    if plain:
        encoded = {name: base64.b64encode(text.encode()).decode() for name, text in plain.items()}
        obj["data"] = {**(obj.get("data") or {}), **encoded}


def _prepare_claim(obj: JsonObject) -> None:
    obj["status"] = {"phase": "Pending"}


def _prepare_crd(obj: JsonObject) -> None:
    obj["status"] = crds.initial_status(obj)


_PREPARE: dict[tuple[str, str], Callable[[JsonObject], None]] = {
    ("", "Pod"): _prepare_pod,
    ("batch", "Job"): _prepare_job,
    ("", "Namespace"): _prepare_namespace,
    ("", "PersistentVolumeClaim"): _prepare_claim,
    ("", "PersistentVolume"): _prepare_claim,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _prepare_crd,
}


def prepare_create(kind: Kind, obj: JsonObject) -> None:
    """Set in place the fields of a new object that only the server may set."""
    hook = _PREPARE.get((kind.group, kind.kind))
    if hook is not None:
        hook(obj)
    if has_generation(kind):
        obj["metadata"]["generation"] = 1


def after_decode(kind: Kind, obj: JsonObject) -> None:
    """Convert write-only fields to the stored ones."""
    if (kind.group, kind.kind) == ("", "Secret"):
        _prepare_secret(obj)


def allocate_addresses(service: JsonObject, taken: set[str], seed: int) -> None:
    """Give a new Service its cluster address."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return
    if not spec.get("clusterIP"):
        first = int(ipaddress.IPv4Address("10.96.0.0"))
        for step in range(1 << 16):
            address = str(ipaddress.IPv4Address(first + 10 + (seed * 7919 + step) % ((1 << 16) - 20)))
            if address not in taken:
                spec["clusterIP"] = address
                break
    spec["clusterIPs"] = [spec["clusterIP"]]
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")


def carry_over_service(new: JsonObject, old: JsonObject) -> None:
    """Keep the addresses that a PUT or patch leaves out."""
    for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if name not in new["spec"] and name in old["spec"] and new["spec"].get("type") != "ExternalName":
            new["spec"][name] = copy_json(old["spec"][name])
