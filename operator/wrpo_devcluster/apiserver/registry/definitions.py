"""Life cycle of CustomResourceDefinitions: acceptance, serving, and deletion after their objects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

from wrpo_devcluster.apiserver.admission.chain import CRDS
from wrpo_devcluster.apiserver.apis.request import MASTERS, Context, User
from wrpo_devcluster.apiserver.registry.deletion import DeleteOptions, Deleter
from wrpo_devcluster.apiserver.registry.status import write_status
from wrpo_devcluster.apiserver.schema import typed
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.validation import crds
from wrpo_devcluster.client import ApiError, JsonObject

_GROUP, _PLURAL = "apiextensions.k8s.io", "customresourcedefinitions"
_CLEANUP_RETRY_S = 0.2


class Definitions:
    """Synchronization of served kinds and CRD statuses with the stored CRDs."""

    def __init__(self, deleter: Deleter, *, status_delay_s: float) -> None:
        self._deleter = deleter
        self._pipeline = deleter.pipeline
        self._store = self._pipeline.store
        self._registry = self._pipeline.registry
        self._status_delay_s = status_delay_s
        self._tasks: set[asyncio.Task[None]] = set()

    def load(self) -> None:
        """Serve the CRDs accepted before a restart, and accept the others."""
        for record in list(self._store.list(CRDS, None)):
            if record.obj["status"].get("conditions"):
                self._registry.add_custom(record.obj)
            else:
                # The server ended before it had accepted this one.
                self._establish(record.obj["metadata"]["name"])

    def after_write(self, kind: Kind, new: JsonObject | None, old: JsonObject | None) -> None:
        """React to a durable write of any kind."""
        if (kind.group, kind.plural) != (_GROUP, _PLURAL):
            return
        if new is None:
            assert old is not None
            self._forget(old)
        elif new["metadata"].get("deletionTimestamp"):
            self._spawn(self._clean_up(new["metadata"]["name"]))
        elif old is None and self._status_delay_s:
            self._spawn(self._establish_late(new["metadata"]["name"]))
        elif old is None or old["status"].get("conditions"):
            self._establish(new["metadata"]["name"])

    def resume_cleanups(self) -> None:
        """Continue deletions of CRDs that a restart interrupted."""
        for record in self._store.list(CRDS, None):
            if record.obj["metadata"].get("deletionTimestamp"):
                self._spawn(self._clean_up(record.obj["metadata"]["name"]))

    async def close(self) -> None:
        """Cancel the work on definitions that is under way, and wait for its end."""
        for task in list(self._tasks):
            task.cancel()
        for task in list(self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _establish_late(self, name: str) -> None:
        await asyncio.sleep(self._status_delay_s)
        self._establish(name)

    def _establish(self, name: str) -> None:
        """Accept a CRD's names, serve its kinds and update its status."""
        record = self._store.get(CRDS, "", name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            return
        crd = record.obj
        status = crds.established(crd, self._pipeline.now())
        self._registry.add_custom({**crd, "status": status})
        if not typed.same(status, crd["status"]):
            write_status(self._pipeline, self._kind(), crd, status)

    def _kind(self) -> Kind:
        kind = self._registry.find(_GROUP, "v1", _PLURAL)
        assert kind is not None
        return kind

    def _forget(self, crd: JsonObject) -> None:
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        self._registry.remove_custom(group, plural)
        self._store.break_feeds(lambda key: key == f"{group}/{plural}", gone=False)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        try:
            task = asyncio.get_running_loop().create_task(work)
        except RuntimeError:
            work.close()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _clean_up(self, name: str) -> None:
        """Delete a CRD's objects, then the CRD."""
        while True:
            await asyncio.sleep(_CLEANUP_RETRY_S)
            record = self._store.get(CRDS, "", name)
            if record is None:
                return
            crd = record.obj
            status = crds.deletion_in_progress(crd)
            if not typed.same(status, crd["status"]):
                write_status(self._pipeline, self._kind(), crd, status)
                continue
            if not self._delete_objects(crd):
                rest = [f for f in crd["metadata"].get("finalizers") or () if f != crds.CLEANUP_FINALIZER]
                if not rest:
                    self._pipeline.remove(self._kind(), crd)
                return

    def _delete_objects(self, crd: JsonObject) -> int:
        """Request the deletion of every object of the CRD; return how many remain."""
        version = next(v["name"] for v in crd["spec"]["versions"] if v["storage"])
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        served = self._registry.find(group, version, plural)
        if served is None:
            return 0
        context = Context(User("system:apiserver", (MASTERS,)), "kube-apiserver")
        left = 0
        for record in list(self._store.list(f"{group}/{plural}", None)):
            meta = record.obj["metadata"]
            with contextlib.suppress(ApiError):
                _, gone = self._deleter.delete(served, meta.get("namespace"), meta["name"], DeleteOptions(), context)
                left += not gone
        return left
