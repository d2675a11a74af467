"""Subresources with a separate kind of body: scale, binding, eviction."""

from __future__ import annotations

from typing import Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import Context
from wrpo_devcluster.apiserver.fieldmanager import managed, patch
from wrpo_devcluster.apiserver.schema.kinds import Kind, Target
from wrpo_devcluster.apiserver.services import Services
from wrpo_devcluster.client import JsonObject, Patch


def _selector_text(selector: JsonObject | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(((selector or {}).get("matchLabels") or {}).items()))


def _paths(kind: Kind) -> JsonObject:
    """Return the paths of the scale in a custom resource."""
    assert kind.custom is not None
    found: JsonObject = kind.custom["subresources"]["scale"]
    return found


def _at(obj: JsonObject, path: str) -> Any:
    """Return the value at a path such as `.spec.replicas`; None if absent."""
    found: Any = obj
    for name in path.strip(".").split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _with(obj: JsonObject, path: str, value: Any) -> JsonObject:
    """Return a copy of an object with a value at a path."""
    first, _, rest = path.strip(".").partition(".")
    return {**obj, first: _with(obj.get(first) or {}, rest, value) if rest else value}


def scale_of(kind: Kind, obj: JsonObject) -> JsonObject:
    """Return the autoscaling/v1 Scale of a workload or of a custom resource."""
    meta = obj["metadata"]
    status = obj.get("status") or {}
    if kind.custom is None:
        wanted, found = obj["spec"].get("replicas", 0), status.get("replicas", 0)
        selector = _selector_text(obj["spec"].get("selector"))
    else:
        paths = _paths(kind)
        wanted, found = _at(obj, paths["specReplicasPath"]), _at(obj, paths["statusReplicasPath"]) or 0
        selector = _at(obj, paths["labelSelectorPath"]) if paths.get("labelSelectorPath") else ""
        if wanted is None:
            why = f'the spec replicas field "{paths["specReplicasPath"]}" does not exist'
            raise errors.error(500, "InternalError", f"Internal error occurred: {why}", {"causes": [{"message": why}]})
    shown = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: meta[key] for key in shown if key in meta},
        "spec": {"replicas": wanted} if wanted else {},
        "status": {"replicas": found, **({"selector": selector} if selector else {})},
    }


def put_scale(services: Services, target: Target, body: Any, context: Context) -> JsonObject:
    """Set the replicas of an object from its Scale."""
    kind, name = target.kind, target.name
    old = services.pipeline.get(kind, target.namespace, name)
    if not isinstance(body, dict) or body.get("kind", "Scale") != "Scale":
        raise errors.bad_request("the object provided is unrecognized (must be of type Scale)")
    if (body.get("metadata") or {}).get("name", name) != name:
        raise errors.bad_request(
            f"the name of the object ({body['metadata']['name']}) does not match the name on the URL ({name})"
        )
    replicas = (body.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        cause = errors.invalid_field("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.invalid("Scale", "autoscaling", name, [cause])
    path = ".spec.replicas" if kind.custom is None else _paths(kind)["specReplicasPath"]
    new = _with({**old, "metadata": dict(old["metadata"])}, path, replicas)
    given = (body.get("metadata") or {}).get("resourceVersion")
    if given:
        new["metadata"]["resourceVersion"] = given
    key = managed.ManagerKey(context.manager, "Update", kind.api_version, "scale")
    managers = managed.record_update(kind.node, old, new, key, now=services.pipeline.now())
    if key in managers:
        # As in the real server, whose conversion of the Scale's fields loses the time.
        managers[key].time = None
    return scale_of(kind, services.pipeline.change(target, old, new, context, managers=managers))


def patch_scale(services: Services, target: Target, body: Any, style: Patch, context: Context) -> JsonObject:
    """Patch the Scale of an object."""
    if style == "apply":
        return _apply_scale(services, target, body, context)
    current = scale_of(target.kind, services.pipeline.get(target.kind, target.namespace, target.name))
    try:
        merged = patch.json_patch(current, body) if style == "json" else patch.merge_patch(current, body)
    except patch.PatchError as problem:
        raise patch.refusal(problem) from problem
    return put_scale(services, target, merged, context)


def _apply_scale(services: Services, target: Target, body: Any, context: Context) -> JsonObject:
    kind = target.kind
    if kind.custom is not None:
        obj = f"/{target.name}; autoscaling/v1, Kind=Scale"
        why = "request to convert CR to an invalid group/version: autoscaling/v1"
        raise errors.internal(f"failed to convert new object ({obj}) to proper version: {why}")
    config = {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": target.name},
        "spec": {"replicas": (body.get("spec") or {}).get("replicas", 0)},
    }
    scaled, _ = services.pipeline.patch(target, config, context, style="apply")
    return scale_of(kind, scaled)


def bind(services: Services, target: Target, body: Any, context: Context) -> JsonObject:
    """Assign a pod to a node, once."""
    name = target.name
    old = services.pipeline.get(target.kind, target.namespace, name)
    node = (body.get("target") or {}).get("name") if isinstance(body, dict) else None
    if not node:
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
        "lastTransitionTime": services.pipeline.now(),
    }
    new = {
        **old,
        "metadata": dict(old["metadata"]),
        "spec": {**old["spec"], "nodeName": node},
        "status": {**old["status"], "conditions": [scheduled, *conditions]},
    }
    if not context.dry_run:
        services.pipeline.store_unchecked(target.kind, new, old)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
