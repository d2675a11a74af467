"""From a request body to an object of its kind: identity checks, unknown fields, pruning, defaults."""

from __future__ import annotations

from typing import Any

from wrpo_devcluster.apiserver import codec, errors, strategies
from wrpo_devcluster.apiserver.codec import DecodeError, Findings, copy_json
from wrpo_devcluster.apiserver.defaults import DEFAULTS
from wrpo_devcluster.apiserver.kinds import Kind
from wrpo_devcluster.apiserver.request import Context
from wrpo_devcluster.apiserver.schema import META, Node, builtin
from wrpo_devcluster.client import ApiError, JsonObject

_META_NODE = builtin(f"{META}.ObjectMeta")
_META_FIELDS = frozenset(_META_NODE.properties)


def check_identity(kind: Kind, body: Any) -> None:
    """Is this a body for this endpoint at all?"""
    if not isinstance(body, dict):
        raise errors.bad_request(f"the object provided is unrecognized (must be of type {kind.kind}): not an object")
    version, name = body.get("apiVersion"), body.get("kind")
    if kind.custom is not None:
        if version != kind.api_version:
            if not version:
                raise errors.bad_request(
                    f"the object provided is unrecognized (must be of type {kind.kind}): couldn't get version/kind"
                )
            raise _wrong_version(version, kind)
        if name != kind.kind:
            cause = errors.invalid_field("kind", name, f"must be {kind.kind}")
            object_name = (body.get("metadata") or {}).get("name", "")
            raise errors.invalid(str(name), kind.group, object_name, [cause])
        return
    # A built-in body may leave its type out: the endpoint tells it.
    if version and version != kind.api_version:
        raise _wrong_version(version, kind)
    if name and name != kind.kind:
        raise errors.bad_request(
            f"{name} in version {kind.version!r} cannot be handled as a {kind.kind}: no kind {name!r} is registered for"
            f" version {kind.api_version!r} at this endpoint"
        )


def _wrong_version(version: Any, kind: Kind) -> ApiError:
    return errors.bad_request(
        f"the API version in the data ({version}) does not match the expected API version ({kind.api_version})"
    )


def decode(kind: Kind, body: JsonObject, context: Context, *, node: Node | None = None) -> JsonObject:
    """Return a fresh object, pruned and defaulted; unknown fields warn or refuse as the request asked."""
    check_identity(kind, body)
    findings = Findings()
    if context.field_validation != "Ignore":
        codec.find_duplicates(body, findings)
    try:
        if kind.custom is None:
            obj = codec.decode_builtin(node or kind.node, body, findings)
        else:
            obj = _decode_custom(kind, body, findings)
    except DecodeError as problem:
        text = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {problem}'
        raise errors.bad_request(text) from problem
    _report(kind, findings, context)
    obj = {"kind": kind.kind, "apiVersion": kind.api_version, **_without_type(obj)}
    if kind.custom is None:
        strategies.after_decode(kind, obj)
        default = DEFAULTS.get((kind.group, kind.kind))
        if default is not None:
            default(obj)
    else:
        codec.apply_defaults(kind.node, obj)
    return obj


def _without_type(obj: JsonObject) -> JsonObject:
    return {key: value for key, value in obj.items() if key not in {"kind", "apiVersion"}}


def _decode_custom(kind: Kind, body: JsonObject, findings: Findings) -> JsonObject:
    obj: JsonObject = {key: copy_json(value) for key, value in body.items() if key != "metadata"}
    meta = body.get("metadata")
    obj["metadata"] = codec.decode_builtin(_META_NODE, meta, findings, "metadata") if meta is not None else {}
    content = {key: value for key, value in obj.items() if key not in {"metadata", "kind", "apiVersion"}}
    codec.prune(kind.node, content, findings)
    return {"metadata": obj["metadata"], **content}


def _report(kind: Kind, findings: Findings, context: Context) -> None:
    messages = findings.messages()
    if not messages or context.field_validation == "Ignore":
        return
    if context.field_validation == "Strict":
        raise errors.bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: strict decoding error: '
            + ", ".join(messages)
        )
    for message in messages:
        context.warn(message)
