"""Statuses that the server itself writes after a request's write."""

from __future__ import annotations

from wrpo_devcluster.apiserver.fieldmanager import managed
from wrpo_devcluster.apiserver.registry.pipeline import RequestPipeline
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.client import JsonObject


def write_status(
    pipeline: RequestPipeline, kind: Kind, obj: JsonObject, status: JsonObject, manager: str = "kube-apiserver"
) -> None:
    """Store an object's status, owned by `manager` as if a controller had written it."""
    meta = obj["metadata"]
    new = {**obj, "metadata": dict(meta), "status": status}
    key = managed.ManagerKey(manager, "Update", kind.api_version, "status")
    managers = managed.record_update(kind.node, obj, new, key, now=pipeline.now())
    new["metadata"]["managedFields"] = managed.dump(managers)
    pipeline.store.put(kind.storage_key, meta.get("namespace", ""), meta["name"], new)
