"""Decoding of a request body to an object of its kind: identity, unknown fields, pruning, defaults."""

from __future__ import annotations

from typing import Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import Context
from wrpo_devcluster.apiserver.registry import strategies
from wrpo_devcluster.apiserver.registry.defaults import DEFAULTS, SPEC_DEFAULTS
from wrpo_devcluster.apiserver.schema import codec
from wrpo_devcluster.apiserver.schema.codec import DecodeError, copy_json
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.schema.schema import META, builtin
from wrpo_devcluster.apiserver.schema.serializer import Findings, find_duplicates
from wrpo_devcluster.client import ApiError, JsonObject

_META_NODE = builtin(f"{META}.ObjectMeta")
_IDENTITY = ("kind", "apiVersion")
_NEVER_KEPT = frozenset({"kind", "apiVersion", "metadata"})


def check_identity(kind: Kind, body: Any) -> None:
    """Refuse a body that is not for this endpoint."""
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
    # A built-in body may omit its type, because the endpoint determines it.
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


def decode(
    kind: Kind, body: JsonObject, context: Context, *, stored: JsonObject | None = None, subresource: str = ""
) -> JsonObject:
    """Return a pruned and defaulted object; unknown fields warn or refuse as the request demands.

    `stored` is the object that `body` will replace. Parts that `body` shares with it (a patched object has the very
    parts that the patch left alone) are already in decoded form and are kept as they are.

    Invariant: the result is as without `stored`, and nothing that is reachable from `stored` is changed.
    """
    check_identity(kind, body)
    findings = Findings()
    kept, kept_meta = _kept_parts(kind, body, stored, subresource), _kept_metadata(body, stored)
    changed = {name: value for name, value in body.items() if name not in kept}
    if kept_meta:
        changed["metadata"] = {name: value for name, value in body["metadata"].items() if name not in kept_meta}
    if context.field_validation != "Ignore":
        find_duplicates(changed, findings)
    try:
        if kind.custom is None:
            obj = codec.decode_builtin(kind.node, changed, findings)
        else:
            obj = _decode_custom(kind, changed, findings)
    except DecodeError as problem:
        text = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {problem}'
        raise errors.bad_request(text) from problem
    _report(kind, findings, context)
    obj = {"kind": kind.kind, "apiVersion": kind.api_version, **_without_type(obj)}
    obj["metadata"].update(kept_meta)
    if kind.custom is not None:
        codec.apply_defaults(kind.node, obj)
        codec.drop_nulls(kind.node, obj)
        obj.update(kept)
    else:
        obj.update(kept)
        strategies.after_decode(kind, obj)
        if "spec" not in kept:
            _set_defaults(kind, obj)
    return {name: obj[name] for name in (*_IDENTITY, *body, *obj) if name in obj}


def _kept_parts(kind: Kind, body: JsonObject, stored: JsonObject | None, subresource: str) -> JsonObject:
    """Return the fields other than metadata that `body` shares with `stored` and that need no decoding.

    A built-in kind keeps them unless its defaults affect more than its spec. A custom kind's schema may have changed
    since the object was stored, so it keeps only what the endpoint takes from the stored object in any case.
    """
    if stored is None:
        return {}
    shared = _shared(body, stored)
    if kind.custom is None:
        key = (kind.group, kind.kind)
        return shared if key in SPEC_DEFAULTS or key not in DEFAULTS else {}
    if subresource == "status":
        return {name: value for name, value in shared.items() if name != "status"}
    return {name: value for name, value in shared.items() if name == "status" and kind.has_status}


def _kept_metadata(body: JsonObject, stored: JsonObject | None) -> JsonObject:
    meta = body.get("metadata")
    return _shared(meta, stored["metadata"]) if stored is not None and isinstance(meta, dict) else {}


def _shared(body: JsonObject, stored: JsonObject) -> JsonObject:
    """Return the fields of `body` whose values are the same objects as in `stored`."""
    return {
        name: value
        for name, value in body.items()
        if value is not None and value is stored.get(name) and name not in _NEVER_KEPT
    }


def _set_defaults(kind: Kind, obj: JsonObject) -> None:
    key = (kind.group, kind.kind)
    default = SPEC_DEFAULTS.get(key) or DEFAULTS.get(key)
    if default is not None:
        default(obj)


def _without_type(obj: JsonObject) -> JsonObject:
    return {key: value for key, value in obj.items() if key not in _IDENTITY}


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
