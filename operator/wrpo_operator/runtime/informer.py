"""Informer: keeps the ObjectStore equal to the cluster by discovery, a first list, kopf's watches, and audits.

Missing CRDs are no error. Without WRPOExperiment the operator reports it and waits; without WRPOSweep it has no sweeps;
without a training backend it works and offers the planner fewer backends. Discovery repeats, and a change starts a new
watch session.
An audit lists everything, repairs the store, and verifies the watches. The watch must deliver the changes of the list
within a grace period; otherwise the session counts as dead and is replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from wrpo_operator.runtime.cluster import Cluster
from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.runtime.resources import (
    CHILD_RESOURCES,
    EXPERIMENTS,
    JOBS,
    PODS,
    SWEEPS,
    JsonObject,
    Resource,
    name_of,
    namespace_of,
    uid_of,
    version_of,
)
from wrpo_operator.runtime.store import Key
from wrpo_operator.runtime.watching import WatchSession, WatchSettings, selector_of

log = logging.getLogger(__name__)
REST = 4.0
"""Rest between two pages of an audit, as a multiple of the time that the last page took."""
LONGEST_REST_S = 2.0
"""Upper bound in seconds, because continue tokens of a list expire after some minutes."""
PAUSE = 20.0
"""Minimum pause between two audits, as a multiple of the busy time of the last one: at most 5 % of the time."""
LONGEST_PAUSE_S = 150.0
"""Upper bound in seconds, beyond which the watches would count as dead."""
TRAINING_RESOURCES = tuple(resource for resource in CHILD_RESOURCES.values() if resource != JOBS)


@dataclass(frozen=True, slots=True)
class InformerSettings:
    """Intervals of discovery and lists, in seconds."""

    discovery_s: float = 10.0
    first_audit_s: float = 3.0
    audit_s: float = 60.0
    grace_s: float = 10.0
    restart_s: float = 1.0
    restart_limit_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InformerListener:
    """Functions that the informer calls."""

    on_change: Callable[[Resource, JsonObject], None]
    """Called for every change, deletions included."""
    on_session: Callable[[], None] = lambda: None
    """Called when watching begins (again)."""
    on_trusted: Callable[[], None] = lambda: None
    """Called when everything was listed after `invalidate`."""


class Informer:
    """Owns the cluster's store."""

    def __init__(
        self, cluster: Cluster, settings: InformerSettings, watch: WatchSettings, listener: InformerListener
    ) -> None:
        self._client = cluster.client
        self._store = cluster.store
        self._monotonic = cluster.monotonic
        self._settings = settings
        self._watch = watch
        self._listener = listener
        self._served: frozenset[Resource] = frozenset()
        self._pending: dict[str, int] = {}
        """uid -> version in a list that the watch has not delivered yet."""
        self._audit_soon = asyncio.Event()
        self._session_started_at = 0.0
        self.proven_at = cluster.monotonic()
        """Time at which the store was last known to equal the cluster."""
        self.synced = False
        self.problem = "the first list is not complete yet"
        """Why there are no watches; empty while watching."""

    @property
    def training_backends(self) -> frozenset[str]:
        """Kinds of training resources whose CRD is installed."""
        return frozenset(resource.kind for resource in TRAINING_RESOURCES if resource in self._served)

    def invalidate(self) -> None:
        """Count as not synced until everything was listed again.

        A new leader does so because its watches may lag behind the last writes of its predecessor.
        """
        if self.synced:
            self.synced = False
            self._audit_soon.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        pause = self._settings.restart_s
        while True:
            began = self._monotonic()
            try:
                await self._watch_once()
            except KubeError as error:
                self._report(error.message)
            if self._monotonic() - began > self._settings.restart_limit_s:
                pause = self._settings.restart_s
            await asyncio.sleep(pause)
            pause = min(pause * 2, self._settings.restart_limit_s) if self.problem else self._settings.restart_s

    async def _watch_once(self) -> None:
        """Discover, list, and watch until the session ends for any reason."""
        served = await self._discover()
        for gone in self._served - served:
            self._store.drop(gone)
        self._served = served
        if EXPERIMENTS not in served:
            # Readiness reports it; liveness does not, because a restart would not install the CRD.
            self.proven_at = self._monotonic()
            self._report(
                "the CRD wrpoexperiments.wrpo.ai is not installed; nothing is reconciled until it is. "
                "Install it with the Helm chart, or: kubectl apply -f crds/wrpoexperiments.wrpo.ai.yaml"
            )
            return
        watched = tuple(sorted(served, key=lambda resource: resource.plural))
        for resource in watched:
            await self._relist(resource)
        session = WatchSession(watched, self._watch, self._receive)
        session.start()
        self._session_started_at = self._monotonic()
        self._pending.clear()
        self.synced, self.problem = True, ""
        self._listener.on_session()
        log.info("watching %s", ", ".join(resource.plural for resource in watched))
        try:
            await self._until_over(session, served)
        finally:
            await session.stop()

    async def _until_over(self, session: WatchSession, served: frozenset[Resource]) -> None:
        tasks = {
            asyncio.create_task(session.wait_ended(), name="kopf-ended"),
            asyncio.create_task(self._until_changed(served), name="discovery"),
            asyncio.create_task(self._audit(), name="audit"),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            outcome = task.result()
            if isinstance(outcome, BaseException):
                self._report(f"watch session failed: {outcome!r}")
            elif outcome:
                log.info("replacing the watch session: %s", outcome)

    async def _discover(self) -> frozenset[Resource]:
        wanted = (EXPERIMENTS, SWEEPS, JOBS, PODS, *TRAINING_RESOURCES)
        answers = [await self._client.served(resource) for resource in wanted]
        return frozenset(resource for resource, is_served in zip(wanted, answers, strict=True) if is_served)

    async def _until_changed(self, served: frozenset[Resource]) -> str:
        """Return once the set of served resources changes."""
        while True:
            await asyncio.sleep(self._settings.discovery_s)
            try:
                now_served = await self._discover()
            except KubeError as error:
                log.warning("discovery failed: %s", error.message)
                continue
            if now_served != served:
                changed = ", ".join(sorted(resource.plural for resource in now_served ^ served))
                return f"CRDs installed or removed: {changed}"

    async def _audit(self) -> str:
        """Repair the store by listing periodically; return once the watches count as dead."""
        pause = self._settings.first_audit_s
        while True:
            await self._sleep_until_audit(pause)
            pause = self._settings.audit_s
            busy_s = 0.0
            try:
                for resource in self._served:
                    busy_s += await self._relist(resource, expects_events=True)
            except KubeError as error:
                log.warning("audit failed: %s", error.message)
                pause = self._settings.first_audit_s
                continue
            if not self.synced:
                self.synced = True
                self._listener.on_trusted()
            if self._pending:
                await asyncio.sleep(self._settings.grace_s)
            if self._pending:
                return f"the watches did not deliver {len(self._pending)} changes that a list shows"
            self.proven_at = self._monotonic()
            pause = max(pause, min(LONGEST_PAUSE_S, PAUSE * busy_s))

    async def _sleep_until_audit(self, pause: float) -> None:
        try:
            async with asyncio.timeout(pause):
                await self._audit_soon.wait()
        except TimeoutError:
            return
        self._audit_soon.clear()
        if self.synced:
            await asyncio.sleep(1)

    async def _relist(self, resource: Resource, *, expects_events: bool = False) -> float:
        """Make the store equal to a list; return the duration in seconds without pauses.

        With `expects_events` the watch must still deliver the versions that the list has and the store lacks.
        """
        listed: set[Key] = set()
        began, version, busy_s = self._monotonic(), "", 0.0
        pages = self._client.pages(resource, self._watch.namespace, label_selector=selector_of(resource))
        async for page in pages:
            took_s, version = self._monotonic() - began, page.version
            for _ in range(page.num_cut):
                self._watch.on_cut(resource.plural)
            for obj in page.items:
                listed.add((namespace_of(obj), name_of(obj)))
                if self._store.upsert(resource, obj):
                    at = version_of(obj)
                    if expects_events and at is not None:
                        self._pending[uid_of(obj)] = at
                    self._listener.on_change(resource, obj)
            busy_s += self._monotonic() - began
            if page.more and self.synced:
                # A long list in the background must block neither this process nor the server.
                await asyncio.sleep(min(LONGEST_REST_S, REST * took_s))
            began = self.proven_at = self._monotonic()
        for obj in self._store.retain(resource, listed, version):
            self._listener.on_change(resource, obj)
        self.proven_at = self._monotonic()
        return busy_s

    def _receive(self, resource: Resource, kind: str | None, obj: JsonObject) -> None:
        at = version_of(obj)
        uid = uid_of(obj)
        if uid in self._pending and (at is None or at >= self._pending[uid] or kind == "DELETED"):
            del self._pending[uid]
        if kind is None and self._monotonic() - self._session_started_at > self._settings.first_audit_s:
            # kopf lists again after a lost watch, but does not report objects deleted meanwhile.
            self._audit_soon.set()
        if kind == "DELETED":
            self._store.delete(resource, obj)
            self._listener.on_change(resource, obj)
            return
        revision = self._store.revision
        self._store.upsert(resource, obj)
        # Nodes and kubelets change many fields that are irrelevant here.
        if self._store.revision != revision:
            self._listener.on_change(resource, obj)

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s", problem)
        self.problem, self.synced = problem, False
