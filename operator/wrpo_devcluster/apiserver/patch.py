"""JSON merge patch, JSON patch and strategic merge patch as pure functions."""

from __future__ import annotations

from typing import Any

from wrpo_devcluster.apiserver.codec import copy_json
from wrpo_devcluster.apiserver.schema import DEDUCED, Node
from wrpo_devcluster.apiserver.typed import child_node, same

DIRECTIVE = "$patch"
RETAIN = "$retainKeys"
DELETE_PRIMITIVES = "$deleteFromPrimitiveList/"
ORDER = "$setElementOrder/"


class PatchError(ValueError):
    """A patch that does not apply; `malformed` tells a bad patch from one that does not fit the object."""

    def __init__(self, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        self.malformed = malformed


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy_json(patch)
    out = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = merge_patch(out.get(name), value)
    return out


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902."""
    if not isinstance(operations, list):
        raise PatchError("json: cannot unmarshal into a list of JSON patch operations", malformed=True)
    document = copy_json(target)
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise PatchError("a JSON patch operation needs op and path", malformed=True)
        document = _operate(document, operation)
    return document


def _split(pointer: str) -> list[str]:
    if pointer == "":
        return []
    if not pointer.startswith("/"):
        raise PatchError(f"JSON pointer {pointer!r} must start with /")
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]


def _step(at: Any, part: str, pointer: str) -> Any:
    if isinstance(at, dict) and part in at:
        return at[part]
    if isinstance(at, list) and part.isdigit() and int(part) < len(at):
        return at[int(part)]
    raise PatchError(f"JSON patch path {pointer!r} does not exist")


def _resolve(document: Any, pointer: str) -> Any:
    at = document
    for part in _split(pointer):
        at = _step(at, part, pointer)
    return at


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    kind, pointer = operation.get("op"), operation["path"]
    if kind in {"add", "replace", "test"} and "value" not in operation:
        raise PatchError(f"JSON patch operation {kind} needs a value", malformed=True)
    if kind == "test":
        if not same(_resolve(document, pointer), operation["value"]):
            raise PatchError(f"testing value {pointer} failed")
        return document
    if kind in {"move", "copy"}:
        value = copy_json(_resolve(document, str(operation.get("from", ""))))
        if kind == "move":
            document = _remove(document, str(operation["from"]))
        return _add(document, pointer, value)
    if kind == "remove":
        return _remove(document, pointer)
    if kind == "replace":
        _resolve(document, pointer)
        return _set(document, pointer, copy_json(operation["value"]))
    if kind == "add":
        return _add(document, pointer, copy_json(operation["value"]))
    raise PatchError(f"unexpected kind of JSON patch operation: {kind!r}", malformed=True)


def _parent(document: Any, pointer: str) -> tuple[Any, str]:
    parts = _split(pointer)
    at = document
    for part in parts[:-1]:
        at = _step(at, part, pointer)
    return at, parts[-1]


def _set(document: Any, pointer: str, value: Any) -> Any:
    if pointer == "":
        return value
    parent, last = _parent(document, pointer)
    parent[int(last) if isinstance(parent, list) else last] = value
    return document


def _add(document: Any, pointer: str, value: Any) -> Any:
    if pointer == "":
        return value
    parent, last = _parent(document, pointer)
    if isinstance(parent, list):
        if last != "-" and (not last.isdigit() or int(last) > len(parent)):
            raise PatchError(f"JSON patch index {last!r} is outside the list at {pointer!r}")
        parent.insert(len(parent) if last == "-" else int(last), value)
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise PatchError(f"JSON patch path {pointer!r} does not exist")
    return document


def _remove(document: Any, pointer: str) -> Any:
    parent, last = _parent(document, pointer)
    _step(parent, last, pointer)
    del parent[int(last) if isinstance(parent, list) else last]
    return document


def strategic_merge(node: Node, target: Any, patch: Any) -> Any:
    """Kubernetes' merge patch that knows list keys from the schema."""
    if not isinstance(patch, dict):
        return copy_json(patch)
    directive = patch.get(DIRECTIVE)
    if directive == "replace":
        return copy_json({key: value for key, value in patch.items() if key != DIRECTIVE})
    if directive == "delete":
        return {}
    if directive not in {None, "merge"}:
        raise PatchError(
            f"unknown {DIRECTIVE} directive {directive!r}: must be replace, delete or merge", malformed=True
        )
    out = dict(target) if isinstance(target, dict) else {}
    _retain(out, patch)
    for name, value in patch.items():
        if name in {DIRECTIVE, RETAIN} or name.startswith(ORDER):
            continue
        if name.startswith(DELETE_PRIMITIVES):
            field = name.removeprefix(DELETE_PRIMITIVES)
            out[field] = [item for item in out.get(field) or [] if item not in value]
        elif value is None:
            out.pop(name, None)
        else:
            out[name] = _strategic_value(child_node(node, name), out.get(name), value, patch.get(ORDER + name))
    return out


def _retain(out: dict[str, Any], patch: dict[str, Any]) -> None:
    if RETAIN in patch:
        keep = set(patch[RETAIN])
        for name in list(out):
            if name not in keep:
                del out[name]


def _strategic_value(node: Node, target: Any, patch: Any, order: list[Any] | None) -> Any:
    if isinstance(patch, dict):
        return strategic_merge(node, target, patch)
    if not isinstance(patch, list) or "merge" not in node.patch_strategy:
        return copy_json(patch)
    existing = target if isinstance(target, list) else []
    if node.merge_key:
        return _merge_by_key(node, existing, patch, order)
    merged = list(existing) + [copy_json(item) for item in patch if item not in existing]
    if order is not None:
        merged.sort(key=lambda item: order.index(item) if item in order else len(order))
    return merged


def _merge_by_key(node: Node, existing: list[Any], patch: list[Any], order: list[Any] | None) -> list[Any]:
    key = node.merge_key
    if any(isinstance(item, dict) and item.get(DIRECTIVE) == "replace" for item in patch):
        return [copy_json(item) for item in patch if DIRECTIVE not in item]
    out = list(existing)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise PatchError(f"map: {item} does not contain declared merge key: {key}", malformed=True)
        at = next((index for index, old in enumerate(out) if old.get(key) == item[key]), None)
        if item.get(DIRECTIVE) == "delete":
            out = [old for old in out if old.get(key) != item[key]]
        elif at is None:
            out.append(strategic_merge(node.items or DEDUCED, {}, item))
        else:
            out[at] = strategic_merge(node.items or DEDUCED, out[at], item)
    if order is not None:
        wanted = [entry.get(key) for entry in order if isinstance(entry, dict)]
        out.sort(key=lambda item: wanted.index(item.get(key)) if item.get(key) in wanted else len(wanted))
    return out
