"""One reconcile: snapshot -> plan -> apply -> at most one status write -> deletions -> events. It decides nothing.

Every write first checks that this process still leads. After an error, or the end of the process, the next reconcile
has a fresh snapshot, and the order of writes makes that safe. Children are created before the status lists them,
because their names are derived from their content and repeated creation changes nothing. They are deleted after the
status has recorded the reason, because a deleted child provides no facts.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from wrpo_operator.api import messages, names
from wrpo_operator.api.backends import CHILD_KINDS
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.status import FINISHED, Phase
from wrpo_operator.plan.events import events_between
from wrpo_operator.plan.model import (
    DeleteChild,
    Experiment,
    Manifest,
    Plan,
    PlannedAttempt,
    PlannedEvent,
    SetSuspend,
    Snapshot,
)
from wrpo_operator.plan.planner import plan
from wrpo_operator.render import render_attempt
from wrpo_operator.render.settings import RenderSettings
from wrpo_operator.runtime.cluster import Cluster
from wrpo_operator.runtime.diagnostics import DiagnosticsClient
from wrpo_operator.runtime.events import EventWriter
from wrpo_operator.runtime.holding import HeldStatuses
from wrpo_operator.runtime.host import Host, NotLeadingError
from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.runtime.log import bind
from wrpo_operator.runtime.queue import RetryAfterError
from wrpo_operator.runtime.refusals import NAMESPACE_TERMINATING, STATUS, RefusalStore, is_passing, shorten
from wrpo_operator.runtime.resources import (
    APPLIED_RESOURCES,
    CHILD_RESOURCES,
    CONFIG_MAPS,
    EXPERIMENTS,
    SERVICE_ACCOUNTS,
    JsonObject,
    Resource,
    meta,
    name_of,
    namespace_of,
)
from wrpo_operator.runtime.snapshot import SnapshotBuilder
from wrpo_operator.runtime.store import Key
from wrpo_operator.runtime.writes import merge_patch_of, together
from wrpo_operator.sizing.inventory import Inventory

log = logging.getLogger(__name__)
OnStatus = Callable[[JsonObject, JsonObject | None], None]
"""Called with the status before a write, and the one after it or None if the write was refused."""
APPLIED_TTL_S = 300.0
"""Seconds for which prerequisites of a child (account, ConfigMap) count as applied when it is retried."""
UNREAD = FINISHED | {Phase.SUSPENDED}
"""Phases of experiments that start no stage; their parsed specs are not cached."""
STARTING_S = 0.2
"""Seconds until the next reconcile when another experiment starts a stage that this one needs too, or when the
experiment changed during the reconcile."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A write that the API server refused."""

    error: KubeError
    manifest: Manifest
    planned: PlannedAttempt | None = None
    """None: it concerns no single stage."""


async def no_inventory(experiment: Experiment) -> None:
    """Return no inventory, so that nothing is chosen."""
    del experiment


@dataclass(frozen=True, slots=True)
class ReconcilerSettings:
    """Settings that are constant while the process runs."""

    render: RenderSettings
    identity: str
    manage_service_account: bool
    """Whether to create the stages' ServiceAccount in each experiment's namespace (cluster mode), or it exists
    already."""
    moment_s: float = 0.0
    """Seconds by which unimportant status changes are delayed to batch them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcilerHost(Host):
    """Host of the reconciler of experiments."""

    on_status: OnStatus = lambda _before, _after: None
    on_written: Callable[[JsonObject], None] = lambda _obj: None
    """Called with each experiment whose status was written."""
    accelerators: Callable[[Experiment], Awaitable[Inventory | None]] = no_inventory
    """Returns the accelerators from which the operator chooses."""


class Reconciler:
    """Applies the plans of experiments to the cluster."""

    def __init__(
        self, cluster: Cluster, snapshots: SnapshotBuilder, settings: ReconcilerSettings, host: ReconcilerHost
    ) -> None:
        self._client = cluster.client
        self._store = cluster.store
        self._now = cluster.now
        self._monotonic = cluster.monotonic
        self._snapshots = snapshots
        self._settings = settings
        self._host = host
        self._applied: dict[tuple[str, str, str], float] = {}
        """(namespace, kind, name) -> when a ServiceAccount or ConfigMap was last applied."""
        self._refusals = RefusalStore(cluster.monotonic)
        self._held = HeldStatuses(cluster.monotonic, settings.moment_s)
        self._diagnostics = DiagnosticsClient(cluster.client, cluster.monotonic, host.wake)
        self._events = EventWriter(client=cluster.client, now=cluster.now, host=settings.identity, check=host.check)
        self._starting: dict[tuple[str, str], str] = {}
        """(namespace, artifact key) of attempts that are being applied -> the experiment's uid."""

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one experiment; return the seconds until the next reconcile, or None."""
        namespace, name = key
        bind(experiment=f"{namespace}/{name}")
        obj = self._store.get(EXPERIMENTS, namespace, name)
        if obj is None:
            self._snapshots.forget(key)
            self._refusals.forget(key)
            # Its namespace may be deleted and recreated without the account.
            self._applied.pop((namespace, SERVICE_ACCOUNTS.kind, self._settings.render.service_account), None)
            self._held.forget(key)
            self._host.forget(key)
            return None
        if not self._host.may_act():
            return None
        stored = self._snapshots.experiment(obj)
        experiment = self._held.current(key, stored)
        try:
            snapshot = await self._look(experiment)
            todo = plan(replace(snapshot, refused=self._refusals.held(experiment)), self._now())
            # Nothing is awaited between the snapshot and this: of two plans for one artifact only the first is carried
            # out.
            keys = [(namespace, planned.artifact_key) for planned in todo.apply]
            if any(self._starting.get(each, experiment.uid) != experiment.uid for each in keys):
                return STARTING_S
            self._starting.update(dict.fromkeys(keys, experiment.uid))
            try:
                todo, again_s = await self._carry_out(obj, stored, snapshot, todo)
            finally:
                for each in keys:
                    self._starting.pop(each, None)
        except NotLeadingError:
            log.info("reconcile aborted: this operator is no longer the leader")
            return None
        except KubeError as error:
            raise RetryAfterError(error.retry_after_s or 0.0) from error
        if again_s > 0:
            return again_s if todo.requeue_after_s is None else min(again_s, todo.requeue_after_s)
        if (todo.status or experiment.status).phase in UNREAD:
            # A parsed spec takes 90 KiB, and the few further reconciles can parse it again.
            self._snapshots.forget(key)
            self._held.forget(key)
        waits = [todo.requeue_after_s, self._refusals.due_in_s(experiment)]
        return min((wait for wait in waits if wait is not None), default=None)

    async def _carry_out(
        self, obj: JsonObject, stored: Experiment, snapshot: Snapshot, todo: Plan
    ) -> tuple[Plan, float]:
        """Apply the plan; return its accepted part, and the delay of the next reconcile in seconds.

        Refusals are reported together with the observed state: planning is repeated with the same snapshot and the
        refusals. An unreachable server raises. `stored` has the status of the server, which may be older than that of
        the snapshot's experiment. A delay of 0 means that everything is written.
        """
        experiment = snapshot.experiment
        refused = await self._apply(experiment, todo)
        if refused:
            self._note(experiment, refused)
            todo = plan(replace(snapshot, refused=self._refusals.of(experiment)), self._now())
        wait_s = self._held.wait_s((stored.namespace, stored.name), stored, todo)
        if wait_s > 0:
            return todo, wait_s
        if not await self._write_status(obj, stored, todo):
            return todo, STARTING_S
        for waiting in self._snapshots.waiting_for_record(stored, todo.status or stored.status):
            self._host.wake(waiting)
        undeleted = [found for deletion in todo.delete if (found := await self._delete(experiment, deletion))]
        self._note(experiment, undeleted)
        is_lifted = not refused and not undeleted and self._refusals.clear(experiment, "")
        if len(undeleted) < len(todo.delete):
            # What was deleted may have been in the way, e.g. of a quota.
            self._refusals.hasten(experiment)
        if not any(NAMESPACE_TERMINATING in found.error.causes for found in refused):
            happened = todo.events if experiment is stored else events_between(stored, todo.status or stored.status)
            await together(self._events.post(obj, event) for event in happened)
        return todo, STARTING_S if is_lifted else 0.0

    def _note(self, experiment: Experiment, refused: Iterable[Refused]) -> None:
        """Remember refusals; each is logged once."""
        for found in refused:
            stage = str(found.planned.node.id) if found.planned else ""
            news = self._refusals.record(experiment, stage, found.error, found.manifest)
            if news is not None:
                log.warning("%s", found.error.message, extra={"reason": news.reason.value})

    async def _apply(self, experiment: Experiment, todo: Plan) -> list[Refused]:
        """Apply the planned attempts; return the refusals."""
        changes = [found for change in todo.suspend if (found := await self._set_suspend(experiment, change))]
        if todo.apply and self._settings.manage_service_account:
            account = self._service_account(experiment.namespace)
            try:
                await self._apply_once(account)
            except KubeError as error:
                if error.unreachable:
                    raise
                return [*changes, *(Refused(error, account, planned) for planned in todo.apply)]
        rendered = [render_attempt(experiment, planned, self._settings.render) for planned in todo.apply]
        prepared = await together(
            self._prepare(planned, others) for planned, (*others, _) in zip(todo.apply, rendered, strict=True)
        )
        # One after another: pods get room in the order in which their child was created.
        started = [
            refused or await self._start(experiment, planned, child)
            for planned, (*_, child), refused in zip(todo.apply, rendered, prepared, strict=True)
        ]
        return [*changes, *(found for found in started if found is not None)]

    async def _prepare(self, planned: PlannedAttempt, manifests: Iterable[Manifest]) -> Refused | None:
        """Apply what an attempt's child needs, ConfigMap first."""
        for manifest in manifests:
            resource = APPLIED_RESOURCES[manifest["apiVersion"], manifest["kind"]]
            try:
                if resource == CONFIG_MAPS:
                    await self._apply_once(manifest)
                    continue
                self._host.check()
                await self._client.apply(resource, manifest)
            except KubeError as error:
                if error.unreachable:
                    raise
                return Refused(error, manifest, planned)
        return None

    async def _start(self, experiment: Experiment, planned: PlannedAttempt, child: Manifest) -> Refused | None:
        """Apply the child of an attempt."""
        resource = APPLIED_RESOURCES[child["apiVersion"], child["kind"]]
        self._host.check()
        try:
            answer = await self._client.apply(resource, child)
        except KubeError as error:
            if error.unreachable:
                raise
            return Refused(error, child, planned)
        self._store.upsert(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **answer})
        self._applied = {
            key: at for key, at in self._applied.items() if not key[2].startswith(f"{planned.child_name}-")
        }
        self._refusals.clear(experiment, str(planned.node.id))
        log.info(
            "started %s attempt %d as %s",
            planned.node.id,
            planned.attempt,
            planned.child_name,
            extra={"stage": str(planned.node.id), "attempt": planned.attempt, "child": planned.child_name},
        )
        return None

    async def _apply_once(self, manifest: Manifest) -> None:
        """Apply a prerequisite of a child unless it was just applied; a ConfigMap's name is derived from its
        content.
        """
        resource = APPLIED_RESOURCES[manifest["apiVersion"], manifest["kind"]]
        key, at = (namespace_of(manifest), resource.kind, name_of(manifest)), self._monotonic()
        if at - self._applied.get(key, float("-inf")) < APPLIED_TTL_S:
            return
        self._host.check()
        await self._client.apply(resource, manifest)
        self._applied = {known: when for known, when in self._applied.items() if at - when < APPLIED_TTL_S} | {key: at}

    async def _delete(self, experiment: Experiment, deletion: DeleteChild) -> Refused | None:
        self._host.check()
        resource = CHILD_RESOURCES[deletion.kind]
        log.info("deleting %s %s: %s", deletion.kind, deletion.name, deletion.reason, extra={"child": deletion.name})
        try:
            answer = await self._client.delete(resource, deletion.name, experiment.namespace, uid=deletion.uid)
        except KubeError as error:
            if error.unreachable:
                raise
            if not (error.not_found or error.conflict):  # conflict: another object has that name by now
                return Refused(error, _named(resource, deletion.name, experiment))
            answer = {}
        if meta(answer).get("deletionTimestamp"):
            self._store.upsert(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **answer})
            return None
        self._store.delete(
            resource, {"metadata": {"namespace": experiment.namespace, "name": deletion.name, "uid": deletion.uid}}
        )
        return None

    async def _set_suspend(self, experiment: Experiment, change: SetSuspend) -> Refused | None:
        self._host.check()
        resource = CHILD_RESOURCES[change.kind]
        patch = CHILD_KINDS[change.kind].suspend_patch(suspend=change.suspend)
        log.info("%s %s", "suspending" if change.suspend else "resuming", change.name, extra={"child": change.name})
        try:
            answer = await self._client.merge_patch(resource, change.name, experiment.namespace, patch)
        except KubeError as error:
            if error.unreachable:
                raise
            return None if error.not_found else Refused(error, _named(resource, change.name, experiment))
        self._store.upsert(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **answer})
        return None

    async def _write_status(self, obj: JsonObject, experiment: Experiment, todo: Plan) -> bool:
        """Write the status if it changed; return False if the experiment has changed meanwhile.

        The status is the only record of the past. A status that another process wrote meanwhile, e.g. an operator that
        just lost the lease, is never overwritten: the next reconcile uses it.
        """
        if todo.status is None or todo.status == experiment.status:
            return True
        self._host.check()
        before: JsonObject = obj.get("status") or {}
        patch: JsonObject = {"status": merge_patch_of(before, todo.status.to_dict())}
        version = meta(obj).get("resourceVersion")
        if version:
            patch["metadata"] = {"resourceVersion": version}
        try:
            answer = await self._client.merge_patch(
                EXPERIMENTS, experiment.name, experiment.namespace, patch, subresource="status"
            )
        except KubeError as error:
            self._host.on_status(before, None)
            if error.not_found:
                return True
            if not error.conflict:
                if not is_passing(error):
                    await self._tell_of_status(obj, experiment, error)
                raise
            answer = await self._client.get(EXPERIMENTS, experiment.name, experiment.namespace)
            self._store.upsert(EXPERIMENTS, answer)
            return False
        self._host.on_status(before, answer.get("status") or {})
        self._store.upsert(EXPERIMENTS, answer)
        self._host.on_written(answer)
        self._refusals.clear(experiment, STATUS)
        return True

    async def _tell_of_status(self, obj: JsonObject, experiment: Experiment, error: KubeError) -> None:
        """Report in an Event that the status cannot be written, e.g. because the object is too large."""
        manifest = _named(EXPERIMENTS, experiment.name, experiment)
        if self._refusals.record(experiment, STATUS, error, manifest) is not None:
            text = messages.status_refused(shorten(error.words))
            await self._events.post(obj, PlannedEvent("Warning", Reason.STATUS_REFUSED.value, text))

    async def _look(self, experiment: Experiment) -> Snapshot:
        """Return the snapshot of one moment: nothing is awaited after the last read of the store."""
        snapshot = self._snapshots.build(experiment)
        if experiment.spec is None or experiment.deleting:
            return snapshot
        revision = self._store.revision
        status = experiment.status
        is_over = status.phase in FINISHED and status.observed_generation == experiment.generation
        offered = None if is_over else await self._host.accelerators(experiment)
        unwatched = await self._diagnostics.unwatched(experiment, snapshot.children, self._now())
        if self._store.revision != revision:
            snapshot = self._snapshots.build(experiment)
        return replace(snapshot, accelerators=offered, **unwatched)

    def _service_account(self, namespace: str) -> Manifest:
        """Return the account of stages: its token is not mounted, and it has no rights."""
        return {
            "apiVersion": SERVICE_ACCOUNTS.api_version,
            "kind": SERVICE_ACCOUNTS.kind,
            "metadata": {
                "name": self._settings.render.service_account,
                "namespace": namespace,
                "labels": {names.LABEL_MANAGED_BY: names.MANAGER},
            },
            "automountServiceAccountToken": False,
        }


def _named(resource: Resource, name: str, experiment: Experiment) -> Manifest:
    return {"kind": resource.kind, "metadata": {"name": name, "namespace": experiment.namespace}}
