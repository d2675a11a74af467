"""Complete validation of an object to be stored: metadata, the kind's rules, schema and CEL."""

from __future__ import annotations

from wrpo_devcluster.apiserver.apis.errors import Cause
from wrpo_devcluster.apiserver.schema import typed
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.validation import builtin, cel_rules, custom, metadata
from wrpo_devcluster.client import JsonObject

_EVERYWHERE = frozenset({"metadata", "kind", "apiVersion"})


def faults(kind: Kind, obj: JsonObject, old: JsonObject | None) -> list[Cause]:
    """Return the faults of a new object, or of a change from `old`, which was valid when it was stored."""
    causes: list[Cause] = []
    before = None if old is None else old["metadata"]
    if before is not None:
        causes += metadata.metadata_update(obj["metadata"], before)
    if kind.custom is None:
        causes += metadata.metadata(kind, obj["metadata"], before)
        return causes + builtin.validate(kind, obj, old)
    causes = _schema_faults(kind, obj, old) + metadata.metadata(kind, obj["metadata"], before) + causes
    if not kind.node.has_rules:
        return causes
    if custom.is_blocking(causes):
        return [*causes, custom.NOT_CHECKED]
    return causes + cel_rules.check_rules(kind.node, obj, typed.ABSENT if old is None else old)


def _schema_faults(kind: Kind, obj: JsonObject, old: JsonObject | None) -> list[Cause]:
    content, was = _content(obj), typed.ABSENT if old is None else _content(old)
    raw = dict(kind.node.raw)
    if "properties" in raw:
        raw["properties"] = {key: value for key, value in raw["properties"].items() if key != "metadata"}
    raw["required"] = [field for field in raw.get("required", ()) if field not in _EVERYWHERE]
    causes = custom.validate(raw, content, old=was)
    return causes + custom.validate_lists(kind.node, content, old=was)


def _content(obj: JsonObject) -> JsonObject:
    """Return the fields that are specific to the kind."""
    return {key: value for key, value in obj.items() if key not in _EVERYWHERE}
