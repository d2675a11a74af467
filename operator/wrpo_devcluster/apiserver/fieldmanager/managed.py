"""metadata.managedFields: field ownership in updates and server-side apply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.schema import typed
from wrpo_devcluster.apiserver.schema.fieldset import FieldSet, names_all, names_any
from wrpo_devcluster.apiserver.schema.schema import Node
from wrpo_devcluster.client import ApiError, JsonObject

MAX_UPDATE_MANAGERS = 10
_STRIPPED = FieldSet.parse(
    {
        "f:apiVersion": {},
        "f:kind": {},
        "f:metadata": {
            ".": {},
            **{
                f"f:{name}": {}
                for name in (
                    "name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation",
                    "managedFields", "resourceVersion",
                )
            },
        },
    }
)  # fmt: skip
# Identity fields that no manager owns. `metadata` is a struct, so only its member mark is removed.
_STRIPPED.members.discard("f:metadata")
_NOTHING = FieldSet()


@dataclass(frozen=True, slots=True)
class ManagerKey:
    """Identity of an entry. An applier is one manager, regardless of the version that it uses."""

    name: str
    operation: str
    api_version: str
    subresource: str


class Entry:
    """Fields of one manager, parsed on first use, because most writes touch the fields of one or two managers."""

    __slots__ = ("_fields", "_raw", "api_version", "time")

    def __init__(
        self, fields: FieldSet | None, api_version: str, time: str | None, *, raw: JsonObject | None = None
    ) -> None:
        """Initialize from a field set or from `raw`, a fieldsV1 in the server's order."""
        self._fields = fields
        self._raw = raw
        self.api_version = api_version
        self.time = time

    @property
    def fields(self) -> FieldSet:
        """The fields as a set."""
        if self._fields is None:
            self._fields = FieldSet.parse(self._raw or {})
        return self._fields

    @fields.setter
    def fields(self, fields: FieldSet) -> None:
        self._fields, self._raw = fields, None

    @property
    def raw(self) -> JsonObject:
        """Return the fields as fieldsV1. Never change them, because versions of an object share them."""
        if self._raw is None:
            self._raw = self.fields.dump()
        return self._raw

    def lose(self, changed: FieldSet, removed: FieldSet) -> None:
        """Remove fields that others changed or that are gone."""
        if names_any(self.raw, changed) or names_any(self.raw, removed):
            self.fields = self.fields.difference(changed).difference(removed)

    def gain(self, taken: FieldSet) -> None:
        """Add fields that the manager has set."""
        if not names_all(self.raw, taken):
            self.fields = self.fields.union(taken)


Managers = dict[ManagerKey, Entry]


def load(obj: JsonObject, *, is_stored: bool = True) -> Managers:
    """Read managedFields. `is_stored` means that the server wrote them, so that they are in its order."""
    found: Managers = {}
    for raw in obj.get("metadata", {}).get("managedFields") or ():
        operation = raw.get("operation", "Update")
        version = raw.get("apiVersion", "")
        key = ManagerKey(
            raw.get("manager", ""), operation, "" if operation == "Apply" else version, raw.get("subresource", "")
        )
        fields = raw.get("fieldsV1") or {}
        if is_stored:
            found[key] = Entry(None, version, raw.get("time"), raw=fields)
        else:
            found[key] = Entry(FieldSet.parse(fields), version, raw.get("time"))
    return found


def dump(managers: Managers) -> list[JsonObject]:
    """Return the entries in the server's order: appliers first, then by time and name."""
    out = []
    for key, entry in sorted(
        managers.items(),
        key=lambda item: (
            item[0].operation,
            item[1].time or "",
            item[0].name,
            item[1].api_version,
            item[0].subresource,
        ),
    ):
        raw: JsonObject = {"manager": key.name, "operation": key.operation, "apiVersion": entry.api_version}
        if entry.time is not None:
            raw["time"] = entry.time
        raw |= {"fieldsType": "FieldsV1", "fieldsV1": entry.raw}
        if key.subresource:
            raw["subresource"] = key.subresource
        out.append(raw)
    return out


def _strip(fields: FieldSet) -> FieldSet:
    kept = fields.difference(_STRIPPED)
    kept.members.discard("f:metadata")
    return kept


def _yield_fields(managers: Managers, key: ManagerKey, comparison: typed.Comparison) -> None:
    """Remove changed and removed fields from every other manager."""
    changed = comparison.modified.union(comparison.added)
    for other in list(managers):
        if other == key:
            continue
        managers[other].lose(changed, comparison.removed)
        if not managers[other].raw:
            del managers[other]


def record_update(node: Node, live: JsonObject, new: JsonObject, key: ManagerKey, *, now: str) -> Managers:
    """Return the managers of `new` after a create, PUT or patch by `key`."""
    given, known = (obj.get("metadata", {}).get("managedFields") for obj in (new, live))
    managers = load(live) if given is None or given == known else load(new, is_stored=False)
    comparison = typed.compare(node, live, new)
    comparison = typed.Comparison(
        *(_strip(part) for part in (comparison.added, comparison.removed, comparison.modified))
    )
    _yield_fields(managers, key, comparison)
    own, taken = managers.get(key), comparison.modified.union(comparison.added)
    if own is not None:
        own.lose(_NOTHING, comparison.removed)
        if not own.raw and not taken:
            del managers[key]
    if taken:
        own = managers.setdefault(key, Entry(_NOTHING, key.api_version, now))
        own.gain(taken)
        own.api_version, own.time = key.api_version, now
    return _capped(managers)


def _capped(managers: Managers) -> Managers:
    """Merge the oldest update entries when there are too many."""
    updates = [key for key in managers if key.operation == "Update" and not key.subresource]
    if len(updates) <= MAX_UPDATE_MANAGERS:
        return managers
    oldest = sorted(updates, key=lambda key: managers[key].time or "")[: len(updates) - MAX_UPDATE_MANAGERS + 1]
    for key in oldest:
        entry = managers.pop(key)
        merged = ManagerKey("ancient-changes", "Update", entry.api_version, "")
        present = managers.get(merged)
        fields = present.fields.union(entry.fields) if present else entry.fields
        managers[merged] = Entry(fields, entry.api_version, entry.time)
    return managers


@dataclass(frozen=True, slots=True)
class AppliedConfiguration:
    """Content that a manager applies; with `force` it takes over the fields of others."""

    content: JsonObject
    key: ManagerKey
    api_version: str
    force: bool


def apply(node: Node, live: JsonObject, applied: AppliedConfiguration, now: str) -> tuple[JsonObject, Managers]:
    """Merge an applied configuration into `live`; raise a Conflict if others own fields that it changes."""
    managers = load(live)
    key, api_version = applied.key, applied.api_version
    if not managers and live:
        before = typed.field_set(node, live)
        managers[ManagerKey("before-first-apply", "Update", api_version, "")] = Entry(_strip(before), api_version, now)
    last = managers.get(key)
    fields = _strip(typed.field_set(node, applied.content))
    merged = typed.merge(node, live, applied.content)
    managers[key] = Entry(fields, api_version, last.time if last else None)
    if last is not None:
        merged = _prune(node, merged, managers, last.fields)
    comparison = typed.compare(node, live, merged)
    changed = _strip(comparison.modified.union(comparison.added))
    conflicts = {
        other: both
        for other, entry in managers.items()
        if other != key and (both := entry.fields.intersection(changed))
    }
    if conflicts and not applied.force:
        raise _conflict(conflicts)
    _yield_fields(managers, key, typed.Comparison(comparison.added, comparison.removed, comparison.modified))
    if not managers[key].fields:
        del managers[key]
    elif not comparison.is_same():
        managers[key].time = now
    return merged, managers


def _prune(node: Node, merged: JsonObject, managers: Managers, last: FieldSet) -> JsonObject:
    """Drop fields that this applier no longer sets and no other manager owns."""
    last_named = typed.named_members(node, last)
    pruned = typed.remove(node, merged, last_named) or {}
    owned = FieldSet()
    for entry in managers.values():
        owned = owned.union(entry.fields)
    merged_set = typed.named_members(node, typed.field_set(node, merged))
    pruned_set = typed.named_members(node, typed.field_set(node, pruned))
    pruned = typed.remove(node, merged, merged_set.difference(pruned_set.union(typed.named_members(node, owned)))) or {}
    pruned_set = typed.named_members(node, typed.field_set(node, pruned))
    dangling = merged_set.difference(pruned_set).intersection(last_named)
    result: JsonObject = typed.remove(node, merged, dangling) or {}
    return result


def _conflict(conflicts: dict[ManagerKey, FieldSet]) -> ApiError:
    causes: list[errors.Cause] = []
    lines: list[str] = []
    for key, fields in conflicts.items():
        shown = f'"{key.name}"'
        if key.subresource:
            shown += f' with subresource "{key.subresource}"'
        if key.operation == "Update":
            shown += f" using {key.api_version}"
        paths = fields.paths()
        lines.append(f"conflicts with {shown}:\n" + "\n".join(f"- {path}" for path in paths))
        causes += [errors.Cause("FieldManagerConflict", path, f"conflict with {shown}") for path in paths]
    if len(causes) == 1:
        message = f"Apply failed with 1 conflict: {causes[0].message}: {causes[0].field}"
    else:
        message = f"Apply failed with {len(causes)} conflicts: " + "\n".join(lines)
    details: dict[str, Any] = {"causes": [cause.as_dict() for cause in causes]}
    return errors.error(409, "Conflict", message, details)
