"""Fields that an update keeps from the stored object, by endpoint."""

from __future__ import annotations

from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.client import JsonObject

_SYSTEM_FIELDS = (
    "uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink",
    "resourceVersion",
)  # fmt: skip
_MAIN_ENDPOINT_ONLY = ("ownerReferences", "finalizers")


def carry_over(kind: Kind, old: JsonObject, new: JsonObject, subresource: str) -> JsonObject:
    """Return `new` with every field that this endpoint may not change taken from `old`."""
    meta, before = new["metadata"], old["metadata"]
    _take(meta, before, _SYSTEM_FIELDS)
    if subresource == "status":
        return _status_update(kind, old, new)
    if subresource == "finalize":
        return {**old, "metadata": {**before}, "spec": new["spec"]}
    if kind.has_status:
        _take(new, old, ("status",))
    if (kind.group, kind.kind) == ("", "Namespace"):
        new["spec"] = old["spec"]
    if (kind.group, kind.kind) == ("", "Pod") and "nodeName" in old["spec"]:
        new["spec"].setdefault("nodeName", old["spec"]["nodeName"])
    return new


def _take(target: JsonObject, source: JsonObject, names: tuple[str, ...]) -> None:
    for name in names:
        target.pop(name, None)
        if name in source:
            target[name] = source[name]


def _status_update(kind: Kind, old: JsonObject, new: JsonObject) -> JsonObject:
    """Return `old` with the new status. Built-in kinds also accept labels and annotations here."""
    before = old["metadata"]
    if kind.custom is None:
        meta = dict(new["metadata"])
        _take(meta, before, _MAIN_ENDPOINT_ONLY)
    else:
        meta = {**before, "managedFields": new["metadata"].get("managedFields")}
    if meta.get("managedFields") is None:
        meta.pop("managedFields", None)
    out = {key: value for key, value in old.items() if key != "status"} | {"metadata": meta}
    if "status" in new:
        out["status"] = new["status"]
    return out
