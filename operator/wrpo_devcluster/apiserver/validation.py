"""Every fault of an object that is to be stored: metadata, the kind's own rules, schema and CEL."""

from __future__ import annotations

from wrpo_devcluster.apiserver import cel_rules, typed, validate_builtin, validate_custom, validate_meta
from wrpo_devcluster.apiserver.errors import Cause
from wrpo_devcluster.apiserver.kinds import Kind
from wrpo_devcluster.client import JsonObject

_EVERYWHERE = frozenset({"metadata", "kind", "apiVersion"})


def faults(kind: Kind, obj: JsonObject, old: JsonObject | None) -> list[Cause]:
    """Faults of a new object, or of a change from `old`, which is stored and so was once found valid."""
    causes: list[Cause] = []
    before = None if old is None else old["metadata"]
    if before is not None:
        causes += validate_meta.metadata_update(obj["metadata"], before)
    if kind.custom is None:
        causes += validate_meta.metadata(kind, obj["metadata"], before)
        return causes + validate_builtin.validate(kind, obj, old)
    causes = _schema_faults(kind, obj, old) + validate_meta.metadata(kind, obj["metadata"], before) + causes
    if not kind.node.has_rules:
        return causes
    if validate_custom.is_blocking(causes):
        return [*causes, validate_custom.NOT_CHECKED]
    return causes + cel_rules.check_rules(kind.node, obj, typed.ABSENT if old is None else old)


def _schema_faults(kind: Kind, obj: JsonObject, old: JsonObject | None) -> list[Cause]:
    content, was = _content(obj), typed.ABSENT if old is None else _content(old)
    raw = dict(kind.node.raw)
    if "properties" in raw:
        raw["properties"] = {key: value for key, value in raw["properties"].items() if key != "metadata"}
    raw["required"] = [field for field in raw.get("required", ()) if field not in _EVERYWHERE]
    causes = validate_custom.validate(raw, content, old=was)
    return causes + validate_custom.validate_lists(kind.node, content, old=was)


def _content(obj: JsonObject) -> JsonObject:
    """Return what only this kind has."""
    return {key: value for key, value in obj.items() if key not in _EVERYWHERE}
