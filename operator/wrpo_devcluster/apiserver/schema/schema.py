"""Schema trees of built-in kinds and custom resources, for codec, patches, field ownership and CEL."""

from __future__ import annotations

import gzip
import json
import threading
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from wrpo_devcluster.client import JsonObject

META = "io.k8s.apimachinery.pkg.apis.meta.v1"
RULES = "x-kubernetes-validations"
_FOLDER = Path(__file__).with_name("schemas")
_TIMES = {f"{META}.Time": "time", f"{META}.MicroTime": "micro-time"}
_SPECIAL = {
    **_TIMES,
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
    f"{META}.FieldsV1": "raw",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "raw",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON": "raw",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool": "schema-or-bool",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray": "schema-or-array",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray": "schema-or-array",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceSubresourceStatus": "raw",
}


@dataclass(slots=True, eq=False)
class Node:
    """Schema of one place of an object. Nodes of recursive kinds refer to themselves."""

    type: str = ""
    """object, array, string, integer, number, boolean, or empty for anything."""
    special: str = ""
    """time, micro-time, quantity, int-or-string, raw, ... if the JSON type alone is ambiguous."""
    format: str = ""
    properties: dict[str, Node] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    items: Node | None = None
    additional: Node | None = None
    """Schema of a map's values; None where unknown keys are not allowed."""
    list_type: str = "atomic"
    list_keys: tuple[str, ...] = ()
    key_defaults: dict[str, Any] = field(default_factory=dict)
    atomic: bool = False
    """Whether a map or struct is owned and merged as a whole."""
    merge_key: str = ""
    patch_strategy: frozenset[str] = frozenset()
    preserve: bool = False
    embedded: bool = False
    nullable: bool = False
    has_default: bool = False
    default: Any = None
    presence: dict[str, str] = field(default_factory=dict)
    """Built-in kinds only: field -> always, pointer or omit, which is how Go writes an unset or zero field."""
    raw: JsonObject = field(default_factory=dict)
    """The OpenAPI schema this node was made from."""
    definition: str = ""
    has_rules: bool = False
    """Custom resources only: whether there are CEL rules here or below."""
    has_transition_rules: bool = False
    """Whether any of these rules may compare with the old value."""
    is_root: bool = False
    """Custom resources only: whether this is the whole object, with apiVersion, kind and metadata."""
    compiled: Any = None
    """Custom resources only: its rules, which cel_rules.py compiles on first use."""

    @property
    def is_struct(self) -> bool:
        """True for an object with declared fields, as against a map."""
        return bool(self.properties) or (self.type == "object" and self.additional is None)

    def child(self, name: str) -> Node | None:
        """Return the schema of field or key `name`; None if it is not declared."""
        found = self.properties.get(name)
        if found is not None:
            return found
        if self.additional is not None:
            return self.additional
        return DEDUCED if self.preserve or not self.type else None


DEDUCED = Node(preserve=True)
"""Schema-less content: maps merge by key, lists are atomic."""


@cache
def _definitions() -> dict[str, JsonObject]:
    text = gzip.decompress((_FOLDER / "kinds.json.gz").read_bytes())
    loaded: dict[str, JsonObject] = json.loads(text)["definitions"]
    return loaded


@cache
def wire_table() -> dict[str, dict[str, list[Any]]]:
    """Return the wire format: {definition: {json name: [number, wire, repeated, presence, inlined]}}."""
    text = gzip.decompress((_FOLDER / "wire.json.gz").read_bytes())
    loaded: dict[str, dict[str, list[Any]]] = json.loads(text)
    return loaded


def definitions() -> dict[str, JsonObject]:
    """Return the raw OpenAPI definitions of every served built-in kind and of their references."""
    return _definitions()


_built: dict[str, Node] = {}
"""Complete nodes by definition."""
_unfinished: dict[str, Node] = {}
"""Nodes in construction, to which nodes of recursive kinds refer. Only the holder of the lock reads them."""
_construction = threading.RLock()


def builtin(definition: str) -> Node:
    """Return the node of a built-in definition, e.g. `io.k8s.api.batch.v1.Job`.

    Several servers may run in threads of one process: no thread sees a node before it is complete.
    """
    found = _built.get(definition)
    if found is not None:
        return found
    with _construction:
        known = _built.get(definition) or _unfinished.get(definition)
        if known is not None:
            return known
        is_outermost = not _unfinished
        try:
            node = _construct(definition)
            if is_outermost:
                _built.update(_unfinished)
        finally:
            if is_outermost:
                _unfinished.clear()
        return node


def _construct(definition: str) -> Node:
    node = _unfinished[definition] = Node(definition=definition)
    raw = _definitions()[definition]
    if definition in _SPECIAL:
        node.special = _SPECIAL[definition]
        node.type = "string" if definition in _TIMES else ""
        node.preserve = not node.type
        node.raw = raw
        return node
    _fill(node, raw)
    package = definition.rsplit(".", 1)[0]
    node.presence = _presence(definition, package)
    return node


def _presence(definition: str, package: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, entry in wire_table().get(definition, {}).items():
        if entry[4]:
            found |= _presence(f"{package}.{entry[4]}", package)
        else:
            found[name] = entry[3]
    return found


def _builtin_part(raw: JsonObject) -> Node:
    if "$ref" in raw:
        shared = builtin(raw["$ref"])
        if not any(key.startswith("x-kubernetes") for key in raw):
            return shared
        own = replace(shared)
        _extensions(own, {**shared.raw, **raw})
        return own
    node = Node()
    _fill(node, raw)
    return node


def _fill(node: Node, raw: JsonObject) -> None:
    node.raw = raw
    node.type = raw.get("type", "")
    node.format = raw.get("format", "")
    node.required = tuple(raw.get("required", ()))
    node.properties = {name: _builtin_part(body) for name, body in raw.get("properties", {}).items()}
    if "items" in raw:
        node.items = _builtin_part(raw["items"])
    if isinstance(raw.get("additionalProperties"), dict):
        node.additional = _builtin_part(raw["additionalProperties"])
    _extensions(node, raw)
    if node.type == "object" and not node.properties and node.additional is None:
        node.preserve = node.preserve or raw.get("x-kubernetes-preserve-unknown-fields", False)


def _extensions(node: Node, raw: JsonObject) -> None:
    node.list_type = raw.get("x-kubernetes-list-type", "atomic")
    node.list_keys = tuple(raw.get("x-kubernetes-list-map-keys", ()))
    if node.list_type == "map" and node.items is not None:
        node.key_defaults = {"protocol": "TCP"} if "protocol" in node.list_keys else {}
    node.atomic = raw.get("x-kubernetes-map-type") == "atomic"
    node.merge_key = raw.get("x-kubernetes-patch-merge-key", "")
    node.patch_strategy = frozenset(filter(None, raw.get("x-kubernetes-patch-strategy", "").split(",")))
    node.preserve = bool(raw.get("x-kubernetes-preserve-unknown-fields", False))
    node.embedded = bool(raw.get("x-kubernetes-embedded-resource", False))
    if raw.get("x-kubernetes-int-or-string"):
        node.special = "int-or-string"


def structural(raw: JsonObject) -> Node:
    """Return the node of a custom resource's structural schema, without the metadata of every object."""
    node = Node(raw=raw, type=raw.get("type", ""), format=raw.get("format", ""))
    node.required = tuple(raw.get("required", ()))
    node.nullable = bool(raw.get("nullable", False))
    node.has_default = "default" in raw
    node.default = raw.get("default")
    node.properties = {name: structural(body) for name, body in raw.get("properties", {}).items()}
    if isinstance(raw.get("items"), dict):
        node.items = structural(raw["items"])
    extra = raw.get("additionalProperties")
    if isinstance(extra, dict):
        node.additional = structural(extra)
    elif extra is True:
        node.additional = DEDUCED
    _extensions(node, raw)
    if node.list_type == "map" and node.items is not None:
        node.key_defaults = {
            key: node.items.properties[key].default
            for key in node.list_keys
            if key in node.items.properties and node.items.properties[key].has_default
        }
    if node.embedded:
        node.properties = {**node.properties, **_type_meta()}
        node.is_root = True
    _note_rules(node)
    return node


def _note_rules(node: Node) -> None:
    own = node.raw.get(RULES) or ()
    below = [child for child in (*node.properties.values(), node.items, node.additional) if child is not None]
    node.has_rules = bool(own) or any(child.has_rules for child in below)
    node.has_transition_rules = any("oldSelf" in rule.get("rule", "") for rule in own) or any(
        child.has_transition_rules for child in below
    )


def _type_meta() -> dict[str, Node]:
    return {
        "apiVersion": Node(type="string"),
        "kind": Node(type="string"),
        "metadata": builtin(f"{META}.ObjectMeta"),
    }


def custom_root(raw: JsonObject) -> Node:
    """Return the root node of a custom resource: its structural schema plus apiVersion, kind and ObjectMeta."""
    node = structural(raw)
    node.type = node.type or "object"
    node.properties = {**node.properties, **_type_meta()}
    node.is_root = True
    return node
