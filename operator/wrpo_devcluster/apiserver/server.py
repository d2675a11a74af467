"""API server: opens the state, wires the parts, and provides the HTTP application and in-process clients."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from wrpo_devcluster.apiserver.admission.chain import Admission
from wrpo_devcluster.apiserver.apis.request import AUTHENTICATED, MASTERS, User
from wrpo_devcluster.apiserver.auth.rbac import GROUP as RBAC_GROUP
from wrpo_devcluster.apiserver.auth.rbac import Authorizer
from wrpo_devcluster.apiserver.auth.tokens import Tokens
from wrpo_devcluster.apiserver.endpoints.http import make_app
from wrpo_devcluster.apiserver.local import LocalClient
from wrpo_devcluster.apiserver.registry.bootstrap import bootstrap
from wrpo_devcluster.apiserver.registry.definitions import Definitions
from wrpo_devcluster.apiserver.registry.deletion import Deleter
from wrpo_devcluster.apiserver.registry.pipeline import RequestPipeline
from wrpo_devcluster.apiserver.registry.status import write_status
from wrpo_devcluster.apiserver.schema.kinds import Kind, Registry
from wrpo_devcluster.apiserver.services import Attachments, Services
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.client import Client, JsonObject
from wrpo_devcluster.faults import Faults


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class ApiServer:
    """Embedded API server on one state directory, for use from one event loop."""

    def __init__(
        self,
        state_dir: Path,
        *,
        admin_token: str,
        clock: Callable[[], datetime] = utc_now,
        faults: Faults | None = None,
        crd_status_delay_s: float = 0.0,
    ) -> None:
        self.store = Store(state_dir / "state.db")
        self.registry = Registry()
        self.tokens = Tokens(state_dir, self.store, clock)
        self.faults = faults if faults is not None else Faults()
        self.attached = Attachments()
        self._authorizer = Authorizer(self.store)
        self._admission = Admission(self.store, self.registry, self._authorizer)
        self.pipeline = RequestPipeline(self.store, self.registry, self._admission, clock)
        deleter = Deleter(self.pipeline)
        self._definitions = Definitions(deleter, status_delay_s=crd_status_delay_s)
        self._services = Services(
            store=self.store,
            registry=self.registry,
            pipeline=self.pipeline,
            deleter=deleter,
            authorizer=self._authorizer,
            tokens=self.tokens,
            faults=self.faults,
            clock=clock,
            admin_token=admin_token,
            attached=self.attached,
        )
        self.pipeline.after_write.append(self._after_write)
        self._definitions.load()
        bootstrap(self.pipeline)

    def client(self, user: str = "system:kube-controller-manager", *, manager: str = "") -> Client:
        """Return an in-process client with all rights; `manager` is its name in managedFields."""
        manager = manager or user.removeprefix("system:").replace(":", "-")
        return LocalClient(self._services, User(user, (MASTERS, AUTHENTICATED)), manager)

    def app(self) -> web.Application:
        """Return the HTTP application; needs a running event loop."""
        self._definitions.resume_cleanups()
        return make_app(self._services)

    async def close(self) -> None:
        """End all watches and close the store."""
        await self._definitions.close()
        self.store.close()

    def count_events(self, namespace: str) -> int:
        """Return how many Events a namespace holds, or all of them for an empty name."""
        kind = self.registry.core("events").storage_key
        return self.store.count(kind, namespace) if namespace else len(self.store.table(kind).records)

    def close_watches(self, resource: str = "", gone: bool = False) -> int:
        """End the watches on a resource (`pods`, `jobs`; empty: all). With `gone`, resuming fails with 410."""
        return self.store.break_feeds(lambda key: resource in {"", key.rsplit("/", 1)[-1]}, gone=gone)

    def _after_write(self, kind: Kind, new: JsonObject | None, old: JsonObject | None) -> None:
        if kind.group == RBAC_GROUP:
            self._authorizer.changed()
        self._definitions.after_write(kind, new, old)
        changed = new or old
        if kind.namespaced and changed is not None:
            # The server itself counts what it admits. The controller notices the other changes.
            is_admitted = old is None and kind.kind != "ResourceQuota"
            self._update_quotas(kind, changed, "kube-apiserver" if is_admitted else "kube-controller-manager")

    def _update_quotas(self, kind: Kind, changed: JsonObject, manager: str) -> None:
        """Update the usage in the status of quotas."""
        for quota, status in self._admission.quotas.statuses(kind, changed):
            write_status(self.pipeline, self.registry.core("resourcequotas"), quota, status, manager)
