"""Check of an applied configuration against its kind, before it is merged into an object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.errors import Cause
from wrpo_devcluster.apiserver.schema import codec, typed
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.schema.schema import Node
from wrpo_devcluster.client import JsonObject


def checked(kind: Kind, config: JsonObject, namespace: str | None, name: str) -> JsonObject:
    """Return a copy of a configuration that fits its kind.

    For built-in kinds it is in canonical form, so that equal values compare equal. As in the real server, one that
    does not fit is an internal error without a reason, except for nulls in a custom resource, which are invalid.
    """
    shown = f"{namespace or ''}/{name}; {kind.api_version}, Kind={kind.kind}"
    try:
        typed.check(kind.node, {**config, "apiVersion": kind.api_version, "kind": kind.kind})
        if kind.custom is None:
            return dict(codec.canonical_values(kind.node, config))
    except typed.TypedError as problem:
        raise errors.internal(f"failed to create typed patch object ({shown}): {problem}") from problem
    except codec.DecodeError as problem:
        raise errors.internal(f"failed to convert new object ({shown}) to proper version: {problem}") from problem
    causes = [cause for field, node in kind.node.properties.items() for cause in _nulls(node, config.get(field), field)]
    if causes:
        raise errors.invalid(kind.kind, kind.group, name, causes)
    return {**config}


def _nulls(node: Node, value: Any, path: str) -> Iterator[Cause]:
    """Yield the nulls below `value` that its schema forbids; an apply does not drop them as other requests do."""
    if isinstance(value, dict):
        for name, item in value.items():
            child = node.properties.get(name) or node.additional
            if child is None:
                continue
            if item is None and child.type and not child.nullable and not child.has_default:
                why = f'Invalid value: "null": {path}.{name} in body must be of type {child.type}: "null"'
                yield Cause("FieldValueTypeInvalid", f"{path}.{name}", why)
            yield from _nulls(child, item, f"{path}.{name}")
    elif isinstance(value, list) and node.items is not None:
        for index, item in enumerate(value):
            yield from _nulls(node.items, item, f"{path}[{index}]")
