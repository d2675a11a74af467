"""OpenAPI v3 documents per group version, for kubectl's explain, diff, apply and validation."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from wrpo_devcluster.apiserver.schema import schema
from wrpo_devcluster.apiserver.schema.kinds import Kind, Registry, definition_of
from wrpo_devcluster.client import JsonObject

_META = schema.META
_REF = "#/components/schemas/"
_PATCHES = (
    "application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)  # fmt: skip


def index(registry: Registry) -> JsonObject:
    """Return the document at /openapi/v3. The hash of a path changes with what it describes."""
    paths: JsonObject = {}
    versions = [("", "v1"), *((g, v) for g, found in registry.groups().items() for v in found)]
    for group, version in versions:
        name = f"apis/{group}/{version}" if group else f"api/{version}"
        signature = f"{name}:{registry.revision}:" + ",".join(k.plural for k in registry.of_group(group, version))
        digest = hashlib.sha256(signature.encode()).hexdigest().upper()
        paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={digest}"}
    return {"paths": paths}


def document(registry: Registry, group: str, version: str) -> JsonObject | None:
    """Return the OpenAPI document of a version; None if it is not served."""
    kinds = registry.of_group(group, version)
    if not kinds:
        return None
    schemas: JsonObject = {}
    paths: JsonObject = {}
    for kind in kinds:
        name = schema_name(kind)
        if kind.custom is None:
            _include(name, schemas)
            own = schemas[name] = dict(schemas[name])
        else:
            own = schemas[name] = _custom_schema(kind)
            _include(f"{_META}.ObjectMeta", schemas)
        own["x-kubernetes-group-version-kind"] = [{"group": kind.group, "version": kind.version, "kind": kind.kind}]
        paths |= _paths(kind, name)
    _include(f"{_META}.DeleteOptions", schemas)
    _include(f"{_META}.Status", schemas)
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def schema_name(kind: Kind) -> str:
    """Return the name of a kind's schema, e.g. `io.k8s.api.batch.v1.Job`."""
    if kind.custom is None:
        return definition_of(kind.group, kind.kind)
    return f"{'.'.join(reversed(kind.group.split('.')))}.{kind.version}.{kind.kind}"


def _include(name: str, schemas: JsonObject) -> None:
    """Add a built-in definition and everything it refers to."""
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in schemas:
            raw = schema.definitions()[current]
            schemas[current] = _rewrite(raw)
            waiting += _references(raw)


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for item in node for name in _references(item)]
    if not isinstance(node, dict):
        return []
    found = [name for value in node.values() for name in _references(value)]
    if isinstance(node.get("$ref"), str):
        found.append(node["$ref"])
    return found


def _rewrite(node: Any) -> Any:
    if isinstance(node, list):
        return [_rewrite(item) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        rest = {key: _rewrite(value) for key, value in node.items() if key != "$ref"}
        return {**rest, "allOf": [{"$ref": _REF + node["$ref"]}]} if rest else {"$ref": _REF + node["$ref"]}
    return {key: _rewrite(value) for key, value in node.items()}


def _custom_schema(kind: Kind) -> JsonObject:
    raw = json.loads(json.dumps(kind.node.raw))
    properties = {
        "apiVersion": schema.definitions()["io.k8s.api.core.v1.ConfigMap"]["properties"]["apiVersion"],
        "kind": schema.definitions()["io.k8s.api.core.v1.ConfigMap"]["properties"]["kind"],
        **raw.get("properties", {}),
        "metadata": {
            "description": "Standard object's metadata.",
            "allOf": [{"$ref": f"{_REF}{_META}.ObjectMeta"}],
        },
    }
    return {**raw, "type": "object", "properties": properties}


def _parameter(name: str, kind: str = "string") -> JsonObject:
    return {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}


def _operation(kind: Kind, action: str, name: str) -> JsonObject:
    reference = {"schema": {"$ref": _REF + name}}
    operation: JsonObject = {
        "operationId": f"{action}{kind.group.replace('.', '')}{kind.version}{kind.kind}",
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "responses": {"200": {"description": "OK", "content": {"application/json": reference}}},
    }
    if action in {"post", "put", "patch"}:
        parameters = [_parameter(name) for name in ("dryRun", "fieldManager", "fieldValidation")]
        operation["parameters"] = parameters + ([_parameter("force", "boolean")] if action == "patch" else [])
        # Custom resources support no strategic merge patch. kubectl apply would send one if it were listed.
        patches = _PATCHES if kind.custom is None else _PATCHES[:-1]
        types = patches if action == "patch" else ("*/*",)
        operation["requestBody"] = {"content": dict.fromkeys(types, reference)}
    return operation


def _paths(kind: Kind, name: str) -> JsonObject:
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    scoped = f"{root}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
    collection: JsonObject = {"post": _operation(kind, "post", name)}
    if "get" not in kind.verbs:
        return {scoped: collection}
    collection["get"] = _operation(kind, "list", name)
    item = {method: _operation(kind, method, name) for method in ("get", "put", "patch", "delete")}
    found: JsonObject = {scoped: collection, f"{scoped}/{{name}}": item}
    if kind.has_status:
        found[f"{scoped}/{{name}}/status"] = {
            method: _operation(kind, method, name) for method in ("get", "put", "patch")
        }
    return found
