"""Subresources with a body of their own: scale, binding, eviction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wrpo_devcluster.apiserver import errors, patch
from wrpo_devcluster.apiserver.codec import copy_json
from wrpo_devcluster.apiserver.deletion import DeleteOptions
from wrpo_devcluster.apiserver.kinds import Kind
from wrpo_devcluster.apiserver.request import Context
from wrpo_devcluster.apiserver.selectors import from_label_selector
from wrpo_devcluster.client import JsonObject

if TYPE_CHECKING:
    from wrpo_devcluster.apiserver.server import ApiServer


def _selector_text(selector: JsonObject | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(((selector or {}).get("matchLabels") or {}).items()))


def scale_of(obj: JsonObject) -> JsonObject:
    """autoscaling/v1 Scale of a workload."""
    meta = obj["metadata"]
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            key: meta[key]
            for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
            if key in meta
        },
        "spec": {"replicas": obj["spec"].get("replicas", 0)},
        "status": {
            "replicas": (obj.get("status") or {}).get("replicas", 0),
            "selector": _selector_text(obj["spec"].get("selector")),
        },
    }


def put_scale(
    server: ApiServer, kind: Kind, namespace: str | None, name: str, body: Any, context: Context
) -> JsonObject:
    old = server.engine.get(kind, namespace, name)
    replicas = (body.get("spec") or {}).get("replicas", 0) if isinstance(body, dict) else None
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        cause = errors.invalid_field("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.invalid("Scale", "autoscaling", name, [cause])
    new = copy_json(old)
    new["spec"]["replicas"] = replicas
    given = (body.get("metadata") or {}).get("resourceVersion")
    if given:
        new["metadata"]["resourceVersion"] = given
    return scale_of(server.engine.change(kind, old, new, context, subresource=""))


def patch_scale(
    server: ApiServer, kind: Kind, namespace: str | None, name: str, body: Any, style: str, context: Context
) -> JsonObject:
    current = scale_of(server.engine.get(kind, namespace, name))
    try:
        merged = patch.json_patch(current, body) if style == "json" else patch.merge_patch(current, body)
    except patch.PatchError as problem:
        raise (errors.bad_request(str(problem)) if problem.malformed else errors.rejected_patch()) from problem
    return put_scale(server, kind, namespace, name, merged, context)


def bind(server: ApiServer, kind: Kind, namespace: str | None, name: str, body: Any, context: Context) -> JsonObject:
    """Assign a pod to a node, once."""
    old = server.engine.get(kind, namespace, name)
    target = (body.get("target") or {}).get("name") if isinstance(body, dict) else None
    if not target:
        raise errors.invalid("Binding", "", name, [errors.required_field("target.name")])
    if old["metadata"].get("deletionTimestamp"):
        raise errors.conflict("pods", "", name, f"pod {name} is being deleted, cannot be assigned to a host")
    if old["spec"].get("nodeName"):
        raise errors.conflict("pods", "", name, f"pod {name} is already assigned to node {old['spec']['nodeName']!r}")
    conditions = [c for c in old["status"].get("conditions") or () if c.get("type") != "PodScheduled"]
    scheduled = {
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": server.engine.now(),
    }
    new = {
        **old,
        "metadata": dict(old["metadata"]),
        "spec": {**old["spec"], "nodeName": target},
        "status": {**old["status"], "conditions": [scheduled, *conditions]},
    }
    if not context.dry_run:
        server.engine.store_unchecked(kind, new, old)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def evict(server: ApiServer, kind: Kind, namespace: str | None, name: str, body: Any, context: Context) -> JsonObject:
    """Delete a pod unless a disruption budget says no."""
    pod = server.engine.get(kind, namespace, name)
    options = DeleteOptions.parse(body.get("deleteOptions") if isinstance(body, dict) else None)
    labels = pod["metadata"].get("labels") or {}
    for record in server.store.list("policy/poddisruptionbudgets", namespace):
        selector = from_label_selector(record.obj["spec"].get("selector"))
        observed = (record.obj.get("status") or {}).get("observedGeneration")
        exhausted = observed and record.obj["status"].get("disruptionsAllowed", 0) <= 0
        if exhausted and all(part.matches(labels) for part in selector):
            cause = {
                "reason": "DisruptionBudget",
                "message": f"The disruption budget {record.obj['metadata']['name']} needs more healthy pods",
            }
            why = "Cannot evict pod as it would violate the pod's disruption budget."
            raise errors.error(429, "TooManyRequests", why, {"causes": [cause]})
    if not context.dry_run and not pod["metadata"].get("deletionTimestamp"):
        marked = copy_json(pod)
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "lastProbeTime": None,
            "lastTransitionTime": server.engine.now(),
            "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
        }
        others = [c for c in marked["status"].get("conditions") or () if c.get("type") != "DisruptionTarget"]
        marked["status"]["conditions"] = [*others, condition]
        server.engine.store_unchecked(kind, marked, pod)
    server.deleter.delete(kind, namespace, name, options, context)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
