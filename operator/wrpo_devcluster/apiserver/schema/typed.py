"""Schema-aware trees: set fields, differences of objects, merging and removal by field path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wrpo_devcluster.apiserver.schema.fieldset import FieldSet, key_element, value_element
from wrpo_devcluster.apiserver.schema.schema import DEDUCED, Node
from wrpo_devcluster.client import JsonObject

ABSENT: Any = object()
"""Absent, as opposed to null."""


class TypedError(ValueError):
    """Object that does not fit its schema; the message is structured-merge-diff's."""


def child_node(node: Node, name: str) -> Node:
    """Return the schema of a field; that of an undeclared field is deduced from its value."""
    return node.child(name) or DEDUCED


def is_associative(node: Node) -> bool:
    """Return whether the items of a list have identities, by which they are merged."""
    return node.type == "array" and node.list_type in {"map", "set"}


def list_elements(node: Node, items: list[Any], path: str = "") -> dict[str, Any]:
    """Return the items of an associative list by path element. A duplicate is an error."""
    found: dict[str, Any] = {}
    for item in items:
        if node.list_type == "map":
            if not isinstance(item, dict):
                raise TypedError(f"{path}: associative list with keys has an element that's not a map")
            element = key_element(node.list_keys, item, node.key_defaults)
        else:
            element = value_element(item)
        if element in found:
            raise TypedError(f"{path}: duplicate entries for key [{element.split(':', 1)[1]}]")
        found[element] = item
    return found


def check(node: Node, value: Any, path: str = "") -> None:
    """Raise TypedError if `value` has undeclared fields or wrong types, because an apply body must be exact."""
    if value is None or node is DEDUCED:
        return
    if node.type == "object" or (isinstance(value, dict) and node.properties):
        if not isinstance(value, dict):
            raise TypedError(f"{path}: expected map, got &{value}")
        for name, item in value.items():
            child = node.child(name)
            if child is None:
                raise TypedError(f"{path}.{name}: field not declared in schema")
            check(child, item, f"{path}.{name}")
    elif node.type == "array":
        if not isinstance(value, list):
            raise TypedError(f"{path}: expected list, got &{value}")
        if is_associative(node):
            list_elements(node, value, path)
        for index, item in enumerate(value):
            check(node.items or DEDUCED, item, f"{path}[{index}]")
    else:
        _check_scalar(node, value, path)


def _check_scalar(node: Node, value: Any, path: str) -> None:
    if node.special:
        return
    wanted = {
        "string": ("string", isinstance(value, str)),
        "boolean": ("boolean", isinstance(value, bool)),
        "integer": ("numeric (int or float)", isinstance(value, int | float) and not isinstance(value, bool)),
        "number": ("numeric (int or float)", isinstance(value, int | float) and not isinstance(value, bool)),
    }.get(node.type)
    if wanted is not None and not wanted[1]:
        raise TypedError(f"{path}: expected {wanted[0]}, got &{value}")


def field_set(node: Node, value: Any) -> FieldSet:
    """Return every field that an applied configuration names."""
    found = FieldSet()
    _collect(node, value, found)
    return found


def _leaf(node: Node, value: Any) -> bool:
    if isinstance(value, dict):
        return node.atomic or not value or bool(node.special and node.special != "raw")
    if isinstance(value, list):
        return not is_associative(node) or not value
    return True


def _collect(node: Node, value: Any, found: FieldSet) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            element = f"f:{name}"
            child = child_node(node, name)
            if _leaf(child, item) or name not in node.properties:
                found.members.add(element)
            if not _leaf(child, item):
                _collect(child, item, found.at(element))
    elif isinstance(value, list):
        for element, item in list_elements(node, value).items():
            found.members.add(element)
            if not _leaf(node.items or DEDUCED, item):
                _collect(node.items or DEDUCED, item, found.at(element))


@dataclass(slots=True)
class Comparison:
    """Paths added, removed or changed between two objects."""

    added: FieldSet = field(default_factory=FieldSet)
    removed: FieldSet = field(default_factory=FieldSet)
    modified: FieldSet = field(default_factory=FieldSet)

    def is_same(self) -> bool:
        """Return whether the objects are equal."""
        return not (self.added or self.removed or self.modified)


def compare(node: Node, old: JsonObject, new: JsonObject) -> Comparison:
    """Return the paths in which two objects differ."""
    result = Comparison()
    _compare_maps(node, old, new, result)
    return result


def _compare_maps(node: Node, old: JsonObject, new: JsonObject, found: Comparison) -> None:
    for name in old.keys() | new.keys():
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if before is not after:
            _compare_item(child_node(node, name), f"f:{name}", before, after, found)


def _compare_item(node: Node, element: str, before: Any, after: Any, found: Comparison) -> None:
    if before is ABSENT or after is ABSENT:
        present, paths = (after, found.added) if before is ABSENT else (before, found.removed)
        _collect_all(node, element, present, paths)
        return
    # Undeclared fields nest without bound: comparing at each level would take the square of the depth.
    is_free = node is DEDUCED and isinstance(before, dict) and isinstance(after, dict)
    if not is_free and same(before, after):
        return
    shape = after if after is not None else before
    old_empty = before is None or before in ({}, [])
    new_empty = after is None or after in ({}, [])
    mixed = not ((old_empty or type(before) is type(shape)) and (new_empty or type(after) is type(shape)))
    scalar = not isinstance(shape, dict | list) or (old_empty and new_empty) or mixed
    whole = (
        scalar or (isinstance(shape, dict) and node.atomic) or (isinstance(shape, list) and not is_associative(node))
    )
    if whole:
        found.modified.members.add(element)
        return
    below = Comparison(FieldSet(), FieldSet(), FieldSet())
    if isinstance(shape, dict):
        _compare_maps(node, {} if old_empty else before, {} if new_empty else after, below)
    else:
        olds = {} if old_empty else _safe_elements(node, before)
        news = {} if new_empty else _safe_elements(node, after)
        for key in olds.keys() | news.keys():
            _compare_item(node.items or DEDUCED, key, olds.get(key, ABSENT), news.get(key, ABSENT), below)
    for paths, inner in (
        (found.added, below.added),
        (found.removed, below.removed),
        (found.modified, below.modified),
    ):
        if inner:
            paths.children[element] = inner


def _collect_all(node: Node, element: str, value: Any, found: FieldSet) -> None:
    """Add `element` and everything below it that is owned in parts."""
    found.members.add(element)
    if not value or node.atomic:
        return
    if isinstance(value, dict):
        below = found.at(element)
        for name, item in value.items():
            _collect_all(child_node(node, name), f"f:{name}", item, below)
    elif isinstance(value, list) and is_associative(node):
        below = found.at(element)
        for key, item in _safe_elements(node, value).items():
            _collect_all(node.items or DEDUCED, key, item, below)


def _safe_elements(node: Node, items: list[Any]) -> dict[str, Any]:
    """Return items by element. Of duplicates, which typed servers tolerate in stored objects, the last is kept."""
    try:
        return list_elements(node, items)
    except TypedError:
        return {
            key_element(node.list_keys, item, node.key_defaults)
            if node.list_type == "map" and isinstance(item, dict)
            else value_element(item): item
            for item in items
        }


def same(a: Any, b: Any) -> bool:
    """Return whether two JSON values are equal; true is not 1."""
    return a is b or bool(a == b and _same_booleans(a, b))


def _same_booleans(a: Any, b: Any) -> bool:
    """Return whether values that Python calls equal also agree in their booleans."""
    pairs = [(a, b)]
    while pairs:
        one, other = pairs.pop()
        if isinstance(one, bool) is not isinstance(other, bool):
            return False
        if isinstance(one, dict):
            pairs += [(value, other[key]) for key, value in one.items() if value is not other[key]]
        elif isinstance(one, list):
            pairs += zip(one, other, strict=True)
    return True


def merge(node: Node, live: Any, config: Any) -> Any:
    """Return `live` with everything that `config` sets."""
    if isinstance(config, dict) and not node.atomic:
        out = dict(live) if isinstance(live, dict) else {}
        for name, item in config.items():
            out[name] = merge(child_node(node, name), out.get(name), item)
        return out
    if isinstance(config, list) and is_associative(node):
        return _merge_lists(node, live if isinstance(live, list) else [], config)
    return config


def _merge_lists(node: Node, live: list[Any], config: list[Any]) -> list[Any]:
    wanted = list_elements(node, config)
    existing = _safe_elements(node, live)
    shared = [element for element in wanted if element in existing]
    # Items that the configuration names follow its order. The other live ones keep their places around them.
    order: list[str] = []
    rest = iter(wanted)
    for element in existing:
        if element not in wanted:
            order.append(element)
        elif shared:
            for following in rest:
                order.append(following)
                if following == shared[0]:
                    shared.pop(0)
                    break
    order += list(rest)
    items = node.items or DEDUCED
    return [merge(items, existing.get(key), wanted[key]) if key in wanted else existing[key] for key in order]


def remove(node: Node, value: Any, paths: FieldSet) -> Any:
    """Return `value` without the items at `paths`. A container that becomes empty becomes null."""
    if isinstance(value, dict):
        out = {}
        for name, item in value.items():
            element = f"f:{name}"
            if element in paths.members:
                continue
            below = paths.children.get(element)
            out[name] = remove(child_node(node, name), item, below) if below else item
        return out or None
    if isinstance(value, list) and is_associative(node):
        kept = []
        for element, item in _safe_elements(node, value).items():
            if element in paths.members:
                continue
            below = paths.children.get(element)
            kept.append(remove(node.items or DEDUCED, item, below) if below else item)
        return kept or None
    return value


def named_members(node: Node, paths: FieldSet) -> FieldSet:
    """Return `paths` with every element that has paths below it as a member, except unnamed map keys."""
    members = set(paths.members)
    children: dict[str, FieldSet] = {}
    for element, below in paths.children.items():
        name = element[2:] if element.startswith("f:") else ""
        if not name or name in node.properties or node.additional is None:
            members.add(element)
        child = child_node(node, name) if name else node.items or DEDUCED
        children[element] = named_members(child, below)
    return FieldSet(members, children)
