"""What an API server does with an object of the CRD: default, check the structure, evaluate CEL. For tests."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import cel
from jsonschema import Draft4Validator

from wrpo_operator.api.crd import schema


@cache
def crd_schema() -> dict[str, Any]:
    return schema()


def experiment_object(spec: Any, name: str = "demo") -> dict[str, Any]:
    return {
        "apiVersion": "wrpo.ai/v1alpha1",
        "kind": "WRPOExperiment",
        "metadata": {"name": name},
        "spec": spec,
    }


def refusals(obj: dict[str, Any], by: dict[str, Any] | None = None) -> list[str]:
    """Return why the API server would refuse to create an object; empty when it would not. Unknown fields count.

    `by` is the schema of another release.
    """
    node = by or crd_schema()
    defaulted = apply_defaults(copy.deepcopy(obj), node)
    structural = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft4Validator(_closed(node)).iter_errors(defaulted)
    ]
    return structural or [*_doubled(defaulted, node, ""), *_broken(defaulted, node, "")]


def apply_defaults(value: Any, node: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        for name, field in node.get("properties", {}).items():
            if name not in value and "default" in field:
                value[name] = copy.deepcopy(field["default"])
            if name in value:
                value[name] = apply_defaults(value[name], field)
    elif isinstance(value, list):
        return [apply_defaults(item, node.get("items", {})) for item in value]
    return value


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    """Close objects, so that unknown fields are found; metadata is the API server's own."""
    out = dict(node)
    if "properties" in node:
        out["properties"] = {name: _closed(field) for name, field in node["properties"].items()}
        out["additionalProperties"] = False
    if "items" in node:
        out["items"] = _closed(node["items"])
    return out


def _doubled(value: Any, node: dict[str, Any], path: str) -> Iterator[str]:
    for child, field, below in _children(value, node, path):
        if field.get("x-kubernetes-list-type") == "map":
            keys = [tuple(item.get(key) for key in field["x-kubernetes-list-map-keys"]) for item in child]
            yield from (f"{below}: duplicate {key}" for key in sorted({key for key in keys if keys.count(key) > 1}))
        yield from _doubled(child, field, below)


def _broken(value: Any, node: dict[str, Any], path: str) -> Iterator[str]:
    for rule in node.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not holds(rule["rule"], _typed(value, node)):
            yield f"{path}: {rule['message']}"
    for child, field, below in _children(value, node, path):
        yield from _broken(child, field, below)


def _children(value: Any, node: dict[str, Any], path: str) -> Iterator[tuple[Any, dict[str, Any], str]]:
    if isinstance(value, dict):
        for name, field in node.get("properties", {}).items():
            if name in value:
                yield value[name], field, f"{path}.{name}".lstrip(".")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield item, node.get("items", {}), f"{path}[{index}]"


def holds(rule: str, self: Any, **more: Any) -> bool:
    result = cel.evaluate(rule, {"self": self, **more})
    assert isinstance(result, bool), (rule, result)
    return result


def _typed(value: Any, node: dict[str, Any]) -> Any:
    """Give numbers the type that their schema names: an integer literal in a `number` field is a double in CEL."""
    if isinstance(value, dict):
        return {name: _typed(item, node.get("properties", {}).get(name, {})) for name, item in value.items()}
    if isinstance(value, list):
        return [_typed(item, node.get("items", {})) for item in value]
    return float(value) if node.get("type") == "number" else value
