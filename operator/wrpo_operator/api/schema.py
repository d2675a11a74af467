"""Structural OpenAPI v3 schemas of pydantic models, as CustomResourceDefinitions require them.

They have no $ref, no null types and no closed objects, because the API server prunes or refuses unknown fields.
Exclusive bounds are booleans, without fractions. Each field has one description, and each class the CEL rules of
`rules.py`.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from pydantic import BaseModel

from wrpo_engine.contract.base import Role, field_role
from wrpo_operator.api.rules import rules_of

Schema = dict[str, Any]
_DROPPED = frozenset({"title", "$defs", "discriminator", "$schema"})


def structural(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    classes = _classes(model)
    return _convert(raw, raw.get("$defs", {}), classes, model)


def _classes(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return all model classes below one, by name; names are unique among the API's models (tested)."""
    found: dict[str, type[BaseModel]] = {}
    todo = [model]
    while todo:
        current = todo.pop()
        if current.__name__ in found:
            continue
        found[current.__name__] = current
        todo += [cls for info in current.model_fields.values() for cls in _models_in(info.annotation)]
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for part in getattr(annotation, "__args__", ()) for cls in _models_in(part)]


def _convert(
    node: Schema, defs: dict[str, Schema], classes: dict[str, type[BaseModel]], model: type[BaseModel] | None = None
) -> Schema:
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        target = _convert(defs[name], defs, classes, classes.get(name))
        return target | {key: value for key, value in _own(node).items() if key != "$ref"}
    if node.get("x-kubernetes-int-or-string") or node.get("x-kubernetes-preserve-unknown-fields"):
        return _own(node)
    variants = [item for item in node.get("anyOf", []) if item.get("type") != "null"]
    if len(variants) == 1:
        return _convert(variants[0], defs, classes) | _own({k: v for k, v in node.items() if k != "anyOf"})
    out = _own(node)
    out.pop("additionalProperties", None)
    if "properties" in node:
        roles = _roles(model)
        out["properties"] = {
            name: _with_role(_convert(value, defs, classes), roles.get(name))
            for name, value in sorted(node["properties"].items(), key=lambda item: _rank(item[0], node))
        }
    if isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = _convert(node["additionalProperties"], defs, classes)
    if "items" in node:
        out["items"] = _convert(node["items"], defs, classes)
    if model is not None:
        rules = [{"rule": rule.cel, "message": rule.message} for rule in rules_of(model)]
        if rules:
            out["x-kubernetes-validations"] = rules
    return _numbers(out)


def _roles(model: type[BaseModel] | None) -> dict[str, Role | None]:
    """Return alias -> role of the fields of a model, as far as it is stated at the field itself."""
    fields = model.model_fields if model else {}
    return {field.alias or name: field_role(field) for name, field in fields.items()}


def _rank(name: str, node: Schema) -> int:
    """Return a field's place among those of its section: required ones first, then the section's switch."""
    return 0 if name in node.get("required", ()) else 1 if name == "enabled" else 2


def _with_role(node: Schema, role: Role | None) -> Schema:
    """Append the consequence of a change to a field's description, unless its section describes it."""
    if role is Role.EXECUTION:
        node["description"] = f"{node.get('description', '')} Changing it re-runs nothing.".strip()
    return node


def _own(node: Schema) -> Schema:
    """Return a node's own keywords, without those unknown to structural schemas and without null defaults."""
    out = {key: value for key, value in node.items() if key not in _DROPPED}
    if "default" in out:
        # Whole defaults, not {}: the API server checks CEL rules against the unmodified default.
        out["default"] = _without_nulls(out["default"])
        if out["default"] is None:
            del out["default"]
    if "const" in out:
        out["enum"] = [out.pop("const")]
    if "description" in out:
        out["description"] = " ".join(str(out["description"]).split())
    return out


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def without_defaults(node: Any) -> Any:
    """Return the schema without defaults, because a status holds exactly what was written."""
    if isinstance(node, dict):
        return {
            key: {name: without_defaults(item) for name, item in value.items()}
            if key == "properties"
            else without_defaults(value)
            for key, value in node.items()
            if key != "default"
        }
    return [without_defaults(item) for item in node] if isinstance(node, list) else node


def _numbers(node: Schema) -> Schema:
    """Set boolean exclusive bounds and number formats.

    The API server compares an integer with the integer part of a bound, so that 0 is not below an exclusive 0.5. An
    exclusive bound with a fraction becomes an inclusive one, the nearest double inside.
    """
    for bound, exclusive, inwards in (
        ("minimum", "exclusiveMinimum", math.inf),
        ("maximum", "exclusiveMaximum", -math.inf),
    ):
        if exclusive in node and not isinstance(node[exclusive], bool):
            limit = node[exclusive]
            if limit == int(limit):
                node[bound], node[exclusive] = limit, True
            else:
                del node[exclusive]
                node[bound] = math.nextafter(limit, inwards)
    if node.get("type") == "integer":
        node["format"] = "int64"
    if node.get("type") == "number":
        node["format"] = "double"
    return node
