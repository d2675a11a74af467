"""The API server: opens the state, wires the parts, offers the HTTP application and in-process clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from aiohttp import web

from wrpo_devcluster.apiserver.admission.chain import CRDS
from wrpo_devcluster.apiserver.apis.request import AUTHENTICATED, MASTERS, Context, User
from wrpo_devcluster.apiserver.auth.rbac import GROUP as RBAC_GROUP
from wrpo_devcluster.apiserver.auth.rbac import Attributes, Authorizer
from wrpo_devcluster.apiserver.auth.tokens import Tokens
from wrpo_devcluster.apiserver.faults import Fault, Faults
from wrpo_devcluster.apiserver.fieldmanager import managed
from wrpo_devcluster.apiserver.local import LocalClient
from wrpo_devcluster.apiserver.registry.bootstrap import bootstrap
from wrpo_devcluster.apiserver.registry.deletion import DeleteOptions, Deleter
from wrpo_devcluster.apiserver.registry.pipeline import Engine
from wrpo_devcluster.apiserver.schema import typed
from wrpo_devcluster.apiserver.schema.kinds import Kind, Registry
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.apiserver.validation import crds
from wrpo_devcluster.client import ApiError, Client, JsonObject, Resource

RequestLog = Callable[[str, str, str, str, str, str, str, int], None]
"""Receives (user, verb, group, resource, subresource, namespace, name, code) of each resource request."""
_CLEANUP_RETRY_S = 0.2


class LogReader(Protocol):
    """Reads container logs; the kubelet provides it."""

    def read(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        follow: bool,
        tail_lines: int | None,
        since_s: int | None,
        previous: bool,
        timestamps: bool,
    ) -> AsyncIterator[bytes]: ...


def utc_now() -> datetime:
    return datetime.now(UTC)


class ApiServer:
    """One embedded API server on one state directory; to be used from one event loop."""

    def __init__(
        self,
        state_dir: Path,
        *,
        admin_token: str,
        clock: Callable[[], datetime] = utc_now,
        crd_status_delay_s: float = 0.0,
    ) -> None:
        self.state_dir = state_dir
        self._crd_status_delay_s = crd_status_delay_s
        self.admin_token = admin_token
        self.clock = clock
        self.store = Store(state_dir / "state.db")
        self.registry = Registry()
        self.engine = Engine(self.store, self.registry, clock)
        self.deleter = Deleter(self.engine)
        self.authorizer = Authorizer(self.store)
        self.engine.admission.authorizer = self.authorizer
        self.tokens = Tokens(state_dir, self.store, clock)
        self.faults = Faults(self.store)
        self.log_reader: LogReader | None = None
        self.request_log: RequestLog | None = None
        self._kinds_changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.engine.after_write.append(self._after_write)
        self._open()

    def _open(self) -> None:
        for record in list(self.store.list(CRDS, None)):
            if record.obj["status"].get("conditions"):
                self.registry.add_custom(record.obj)
            else:
                # The server ended before it had accepted this one.
                self._establish(record.obj["metadata"]["name"])
        bootstrap(self.engine)

    # What others use

    def client(self, user: str = "system:kube-controller-manager", *, manager: str = "") -> Client:
        """Return an in-process client with every right; `manager` is its name in managedFields."""
        return LocalClient(
            self, User(user, (MASTERS, AUTHENTICATED)), manager or user.removeprefix("system:").replace(":", "-")
        )

    def app(self) -> web.Application:
        from wrpo_devcluster.apiserver.endpoints.http import make_app

        self.resume_cleanups()
        return make_app(self)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for task in list(self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.store.close()

    def count_events(self, namespace: str) -> int:
        """Return how many Events a namespace holds, or all of them for an empty name."""
        kind = self.core("events").storage_key
        return self.store.count(kind, namespace) if namespace else len(self.store.table(kind).records)

    def issue_token(
        self,
        namespace: str,
        service_account: str,
        *,
        audiences: Sequence[str],
        expires_s: int,
        pod: tuple[str, str] | None,
    ) -> str:
        """Token for a service account; `pod` is (name, uid) of the pod it is bound to."""
        return self.tokens.issue(namespace, service_account, audiences=audiences, expires_s=expires_s, pod=pod)

    async def inject(self, fault: Fault) -> Fault:
        """Inject a fault (see `faults.Fault`)."""
        return self.faults.inject(fault)

    # What the pipeline uses

    def authorize(self, user: User, verb: str, kind: Kind, namespace: str, name: str, subresource: str) -> None:
        if not user.privileged:
            self.authorizer.check(
                user, Attributes(verb, kind.group, kind.plural, subresource, namespace if kind.namespaced else "", name)
            )

    def log(self, user: User, verb: str, kind: Kind, namespace: str, name: str, subresource: str, code: int) -> None:
        if self.request_log is not None:
            self.request_log(user.name, verb, kind.group, kind.plural, subresource, namespace, name, code)

    def core(self, plural: str) -> Kind:
        """Kind of the core group."""
        kind = self.registry.find("", "v1", plural)
        assert kind is not None
        return kind

    async def wait_for_kind(self, resource: Resource) -> Kind:
        while True:
            kind = self.registry.find(resource.group, resource.version, resource.plural)
            if kind is not None:
                return kind
            self._kinds_changed.clear()
            await self._kinds_changed.wait()

    def _after_write(self, kind: Kind, new: JsonObject | None, old: JsonObject | None) -> None:
        if kind.group == RBAC_GROUP:
            self.authorizer.changed()
        if (kind.group, kind.plural) == ("apiextensions.k8s.io", "customresourcedefinitions"):
            self._after_crd(new, old)
        changed = new or old
        if kind.namespaced and changed is not None:
            # The server itself counts what it admits; the controller finds out about the rest.
            is_admitted = old is None and kind.kind != "ResourceQuota"
            self._update_quotas(kind, changed, "kube-apiserver" if is_admitted else "kube-controller-manager")

    def _update_quotas(self, kind: Kind, changed: JsonObject, manager: str) -> None:
        """Keep what quotas say is used."""
        for quota, status in self.engine.admission.quotas.statuses(kind, changed):
            self._write_status(self.core("resourcequotas"), quota, status, manager)

    def _after_crd(self, new: JsonObject | None, old: JsonObject | None) -> None:
        if new is None:
            assert old is not None
            self._forget(old)
        elif new["metadata"].get("deletionTimestamp"):
            self._spawn(self._clean_up(new["metadata"]["name"]))
        elif old is None and self._crd_status_delay_s:
            self._spawn(self._establish_late(new["metadata"]["name"]))
        elif old is None or old["status"].get("conditions"):
            self._establish(new["metadata"]["name"])

    async def _establish_late(self, name: str) -> None:
        await asyncio.sleep(self._crd_status_delay_s)
        self._establish(name)

    def _establish(self, name: str) -> None:
        """Accept a CRD's names, serve its kinds and say so in its status."""
        record = self.store.get(CRDS, "", name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            return
        crd = record.obj
        status = crds.established(crd, self.engine.now())
        self.registry.add_custom({**crd, "status": status})
        self._kinds_changed.set()
        if not typed.same(status, crd["status"]):
            kind = self.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
            assert kind is not None
            self._write_status(kind, crd, status)

    def _write_status(self, kind: Kind, obj: JsonObject, status: JsonObject, manager: str = "kube-apiserver") -> None:
        """Write as a controller does, right after the request's own write."""
        meta = obj["metadata"]
        new = {**obj, "metadata": dict(meta), "status": status}
        managers = managed.record_update(
            kind.node,
            obj,
            new,
            managed.ManagerKey(manager, "Update", kind.api_version, "status"),
            api_version=kind.api_version,
            now=self.engine.now(),
        )
        new["metadata"]["managedFields"] = managed.dump(managers)
        self.store.put(kind.storage_key, meta.get("namespace", ""), meta["name"], new)

    def _forget(self, crd: JsonObject) -> None:
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        self.registry.remove_custom(group, plural)
        self.store.break_feeds(lambda key: key == f"{group}/{plural}", gone=False)

    def resume_cleanups(self) -> None:
        """Go on with deletions of CRDs that a restart interrupted."""
        for record in self.store.list(CRDS, None):
            if record.obj["metadata"].get("deletionTimestamp"):
                self._spawn(self._clean_up(record.obj["metadata"]["name"]))

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
        kind = self.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        assert kind is not None
        while True:
            await asyncio.sleep(_CLEANUP_RETRY_S)
            record = self.store.get(kind.storage_key, "", name)
            if record is None:
                return
            crd = record.obj
            status = crds.deletion_in_progress(crd)
            if not typed.same(status, crd["status"]):
                self._write_status(kind, crd, status)
                continue
            if not self._delete_objects(crd):
                rest = [f for f in crd["metadata"].get("finalizers") or () if f != crds.CLEANUP_FINALIZER]
                if not rest:
                    self.engine.remove(kind, crd)
                return

    def _delete_objects(self, crd: JsonObject) -> int:
        """Ask for the deletion of every object of the CRD; return how many are left."""
        version = next(v["name"] for v in crd["spec"]["versions"] if v["storage"])
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        served = self.registry.find(group, version, plural)
        if served is None:
            return 0
        context = Context(User("system:apiserver", (MASTERS,)), "kube-apiserver")
        left = 0
        for record in list(self.store.list(f"{group}/{plural}", None)):
            meta = record.obj["metadata"]
            with contextlib.suppress(ApiError):
                _, gone = self.deleter.delete(served, meta.get("namespace"), meta["name"], DeleteOptions(), context)
                left += not gone
        return left
