"""Pure functions for JSON merge patch, JSON patch and strategic merge patch."""

from __future__ import annotations

from typing import Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.schema.codec import copy_json, go_type
from wrpo_devcluster.apiserver.schema.schema import DEDUCED, Node
from wrpo_devcluster.apiserver.schema.typed import child_node, same
from wrpo_devcluster.client import ApiError, Patch

DIRECTIVE = "$patch"
RETAIN = "$retainKeys"
DELETE_PRIMITIVES = "$deleteFromPrimitiveList/"
ORDER = "$setElementOrder/"
_MOST_OPERATIONS = 10_000
_GO_MAP = "map[string]interface {}"


class PatchError(ValueError):
    """A patch that does not apply. `malformed` distinguishes a bad patch from one that does not fit the object."""

    def __init__(self, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        self.malformed = malformed


def refusal(problem: PatchError) -> ApiError:
    """Return the refusal of a patch that does not apply."""
    return errors.bad_request(str(problem)) if problem.malformed else errors.rejected_patch()


def check_form(content: Any, style: Patch) -> None:
    """Refuse a body that is invalid for this style of patch, before the object is read."""
    if style == "json":
        _check_operations(content)
    elif style == "apply":
        if not isinstance(content, dict):
            why = f"while decoding JSON: json: cannot unmarshal {go_type(content)} into Go value of type {_GO_MAP}"
            raise errors.bad_request(f"error decoding YAML: error unmarshaling JSON: {why}")
    elif content is None:
        raise errors.bad_request("Invalid JSON Patch")
    elif not isinstance(content, dict):
        raise _not_unmarshalled(content, _GO_MAP)


def _check_operations(content: Any) -> None:
    if not isinstance(content, list):
        raise _not_unmarshalled(content, "[]handlers.jsonPatchOp")
    if len(content) > _MOST_OPERATIONS:
        why = f"The allowed maximum operations in a JSON patch is {_MOST_OPERATIONS}, got {len(content)}"
        raise errors.error(413, "RequestEntityTooLarge", why, {})
    for operation in content:
        if not isinstance(operation, dict):
            raise _not_unmarshalled(operation, "handlers.jsonPatchOp")
        for name in ("op", "path", "from"):
            if not isinstance(operation.get(name, ""), str):
                raise _not_unmarshalled(operation[name], "string")


def _not_unmarshalled(value: Any, wanted: str) -> ApiError:
    return errors.bad_request(
        f"error decoding patch: json: cannot unmarshal {go_type(value)} into Go value of type {wanted}"
    )


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
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
    """Apply a JSON patch (RFC 6902)."""
    document = copy_json(target)
    for operation in operations:
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
    if isinstance(at, list):
        return at[_index(part, len(at), pointer)]
    raise PatchError(f"JSON patch path {pointer!r} does not exist")


def _index(part: str, size: int, pointer: str) -> int:
    """Return an index into a list of `size`. As in the real server, negative ones count from its end."""
    try:
        index = int(part)
    except ValueError:
        index = size
    if not -size <= index < size:
        raise PatchError(f"JSON patch index {part!r} is outside the list at {pointer!r}")
    return index % size


def _resolve(document: Any, pointer: str) -> Any:
    at = document
    for part in _split(pointer):
        at = _step(at, part, pointer)
    return at


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    if "path" not in operation:
        raise PatchError("a JSON patch operation needs a path")
    kind, pointer = operation.get("op"), operation["path"]
    value = operation.get("value")
    if kind == "test":
        if not same(_resolve(document, pointer), value):
            raise PatchError(f"testing value {pointer} failed")
        return document
    if kind in {"move", "copy"}:
        source = operation.get("from", "")
        value = copy_json(_resolve(document, source))
        if kind == "move":
            document = _remove(document, source)
        return _add(document, pointer, value)
    if kind == "remove":
        return _remove(document, pointer)
    if kind == "replace":
        _resolve(document, pointer)
        return _set(document, pointer, copy_json(value))
    if kind == "add":
        return _add(document, pointer, copy_json(value))
    raise PatchError(f"unexpected kind of JSON patch operation: {kind!r}")


def _parent(document: Any, pointer: str) -> tuple[Any, str]:
    parts = _split(pointer)
    if not parts:
        raise PatchError("a JSON patch operation needs a path")
    at = document
    for part in parts[:-1]:
        at = _step(at, part, pointer)
    return at, parts[-1]


def _set(document: Any, pointer: str, value: Any) -> Any:
    if pointer == "":
        return value
    parent, last = _parent(document, pointer)
    parent[_index(last, len(parent), pointer) if isinstance(parent, list) else last] = value
    return document


def _add(document: Any, pointer: str, value: Any) -> Any:
    if pointer == "":
        return value
    parent, last = _parent(document, pointer)
    if isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else _index(last, len(parent) + 1, pointer), value)
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise PatchError(f"JSON patch path {pointer!r} does not exist")
    return document


def _remove(document: Any, pointer: str) -> Any:
    parent, last = _parent(document, pointer)
    _step(parent, last, pointer)
    del parent[_index(last, len(parent), pointer) if isinstance(parent, list) else last]
    return document


def strategic_merge(node: Node, target: Any, patch: Any) -> Any:
    """Apply Kubernetes' strategic merge patch, which takes list keys from the schema."""
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
