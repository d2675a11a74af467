"""One reconcile: snapshot -> plan -> apply -> at most one status write -> deletions -> events. It decides nothing.

Every write asks first whether this process still leads. An error, or the end of the process, leaves the rest of the
plan undone: the next look has a fresh snapshot, and the order makes that safe. Children are made before the status
tells of them, for their names are made of their content and making them again changes nothing; they are deleted after
the status has recorded why, for a child that is gone cannot tell any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from wrpo_operator.api import conditions as words
from wrpo_operator.api import names
from wrpo_operator.api.conditions import ConditionType, Reason
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import FINISHED, MAX_BLOCKERS, Blocker, Condition, ExperimentStatus, to_time
from wrpo_operator.plan.model import (
    ChildFact,
    DeleteChild,
    Experiment,
    Plan,
    PlannedAttempt,
    PlannedEvent,
    SetSuspend,
    Snapshot,
)
from wrpo_operator.plan.planner import plan
from wrpo_operator.render import render_attempt
from wrpo_operator.render.settings import RenderSettings
from wrpo_operator.render.training import BACKENDS
from wrpo_operator.runtime import events
from wrpo_operator.runtime.explain import Explainer
from wrpo_operator.runtime.kube import KubeClient, KubeError
from wrpo_operator.runtime.log import bind
from wrpo_operator.runtime.queue import RetryAfterError
from wrpo_operator.runtime.resources import (
    APPLIED_RESOURCES,
    CHILD_RESOURCES,
    CLAIMS,
    EXPERIMENTS,
    SERVICE_ACCOUNTS,
    JsonObject,
    meta,
    namespace_of,
)
from wrpo_operator.runtime.snapshot import SnapshotBuilder
from wrpo_operator.runtime.store import ObjectStore

log = logging.getLogger(__name__)
Key = tuple[str, str]
"""(namespace, name) of an experiment"""
REFUSALS = frozenset({400, 403, 404, 413, 422})
"""Answers that a fresh look does not change; someone has to do something."""
NOT_SERVED = "ChildKindNotServed"
"""A child's kind has just gone; discovery says so within seconds, in better words (TrainingBackendMissing)."""
ACCOUNT_TTL_S = 300.0
TOGETHER = 8
"""Requests of one experiment that are under way at the same time."""
STARTING_S = 0.2
"""How soon to look again when another experiment is just starting a stage that this one wants to start, or when the
experiment was changed during the look."""


class NotLeadingError(Exception):
    """Another operator leads now: nothing more may be written."""


@dataclass(frozen=True, slots=True)
class ReconcilerSettings:
    """What does not change while the process runs."""

    render: RenderSettings
    identity: str
    manage_service_account: bool
    """Whether stages' ServiceAccount is made in each experiment's namespace (cluster mode) or stands there already."""


class Reconciler:
    """Makes the cluster follow one experiment's plan."""

    def __init__(
        self,
        client: KubeClient,
        store: ObjectStore,
        snapshots: SnapshotBuilder,
        settings: ReconcilerSettings,
        *,
        may_act: Callable[[], bool],
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        forget: Callable[[Key], None] = lambda _key: None,
    ) -> None:
        self._client = client
        self._store = store
        self._snapshots = snapshots
        self._settings = settings
        self._may_act = may_act
        self._now = now
        self._monotonic = monotonic
        self._forget = forget
        self._accounts: dict[str, float] = {}
        """Namespace -> when its ServiceAccount was last made sure of."""
        self._explainer = Explainer(client, monotonic)
        self._starting: dict[tuple[str, str], str] = {}
        """(namespace, artifact key) of attempts that are being applied -> the experiment's uid."""

    async def reconcile(self, key: Key) -> float | None:
        """Work on one experiment; return seconds until it wants to be looked at again, or None."""
        namespace, name = key
        bind(experiment=f"{namespace}/{name}")
        obj = self._store.get(EXPERIMENTS, namespace, name)
        if obj is None:
            self._snapshots.forget(key)
            self._forget(key)
            return None
        if not self._may_act():
            return None
        experiment = self._snapshots.experiment(obj)
        try:
            snapshot = await self._look(experiment)
        except KubeError as error:
            raise RetryAfterError(error.retry_after_s or 0.0) from error
        todo = plan(snapshot, self._now())
        # Nothing is awaited between the snapshot and this: of two plans for one artifact only the first is carried out.
        keys = [(namespace, planned.artifact_key) for planned in todo.apply]
        if any(self._starting.get(each, experiment.uid) != experiment.uid for each in keys):
            return STARTING_S
        self._starting.update(dict.fromkeys(keys, experiment.uid))
        try:
            await self._apply(experiment, todo)
            if not await self._write_status(obj, experiment, todo):
                return STARTING_S
            for deletion in todo.delete:
                await self._delete(experiment, deletion)
            await _together(self._post(obj, event) for event in todo.events)
        except NotLeadingError:
            log.info("stopped half-way: this operator leads no more")
            return None
        except KubeError as error:
            await self._explain(obj, experiment, error)
            raise RetryAfterError(error.retry_after_s or 0.0) from error
        finally:
            for each in keys:
                self._starting.pop(each, None)
        if (todo.status or experiment.status).phase in FINISHED:
            # What the spec says takes 90 KiB, and few looks are still to come: they read it again.
            self._snapshots.forget(key)
        return todo.requeue_after_s

    async def _post(self, obj: JsonObject, event: PlannedEvent) -> None:
        now, host = self._now(), self._settings.identity
        await events.post(self._client, obj, event, now=now, host=host, check=self._check)

    async def _apply(self, experiment: Experiment, todo: Plan) -> None:
        for change in todo.suspend:
            await self._set_suspend(experiment, change)
        if todo.apply and self._settings.manage_service_account:
            await self._ensure_service_account(experiment.namespace)
        await _together(self._start(experiment, planned) for planned in todo.apply)

    async def _start(self, experiment: Experiment, planned: PlannedAttempt) -> None:
        """Apply the manifests of one attempt, ConfigMap first."""
        for manifest in render_attempt(experiment, planned, self._settings.render):
            self._check()
            resource = APPLIED_RESOURCES[manifest["apiVersion"], manifest["kind"]]
            try:
                answer = await self._client.apply(resource, manifest)
            except KubeError as error:
                if error.not_found and resource.kind in CHILD_RESOURCES:
                    raise KubeError(error.code, NOT_SERVED, error.message) from error
                raise
            if resource.kind in CHILD_RESOURCES:
                self._store.upsert(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **answer})
        log.info(
            "started %s attempt %d as %s",
            planned.node.id,
            planned.attempt,
            planned.child_name,
            extra={"stage": str(planned.node.id), "attempt": planned.attempt, "child": planned.child_name},
        )

    async def _delete(self, experiment: Experiment, deletion: DeleteChild) -> None:
        self._check()
        resource = CHILD_RESOURCES[deletion.kind]
        log.info("deleting %s %s: %s", deletion.kind, deletion.name, deletion.reason, extra={"child": deletion.name})
        try:
            answer = await self._client.delete(resource, deletion.name, experiment.namespace, uid=deletion.uid)
        except KubeError as error:
            if not (error.not_found or error.conflict):  # conflict: another object has that name by now
                raise
            answer = {}
        if meta(answer).get("deletionTimestamp"):
            self._store.upsert(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **answer})
            return
        self._store.delete(
            resource, {"metadata": {"namespace": experiment.namespace, "name": deletion.name, "uid": deletion.uid}}
        )

    async def _set_suspend(self, experiment: Experiment, change: SetSuspend) -> None:
        self._check()
        resource = CHILD_RESOURCES[change.kind]
        backend = BACKENDS.get(change.kind)
        suspended: JsonObject = {"spec": {"suspend": change.suspend}}
        patch = backend.suspend_patch(suspend=change.suspend) if backend else suspended
        log.info("%s %s", "suspending" if change.suspend else "resuming", change.name, extra={"child": change.name})
        try:
            answer = await self._client.merge_patch(resource, change.name, experiment.namespace, patch)
        except KubeError as error:
            if not error.not_found:
                raise
            return
        self._store.upsert(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **answer})

    async def _write_status(self, obj: JsonObject, experiment: Experiment, todo: Plan) -> bool:
        """Write the status if it changed; return False if the experiment was not what it was taken for.

        What a status remembers exists nowhere else, so one that somebody wrote meanwhile, an operator that has just
        lost the lease for example, is never overwritten: the next look takes it into account.
        """
        if todo.status is None or todo.status == experiment.status:
            return True
        self._check()
        patch: JsonObject = {"status": merge_patch_of(obj.get("status") or {}, todo.status.to_dict())}
        version = meta(obj).get("resourceVersion")
        if version:
            patch["metadata"] = {"resourceVersion": version}
        try:
            answer = await self._client.merge_patch(
                EXPERIMENTS, experiment.name, experiment.namespace, patch, subresource="status"
            )
        except KubeError as error:
            if error.not_found:
                return True
            if not error.conflict:
                raise
            answer = await self._client.get(EXPERIMENTS, experiment.name, experiment.namespace)
            self._store.upsert(EXPERIMENTS, answer)
            return False
        self._store.upsert(EXPERIMENTS, answer)
        return True

    async def _look(self, experiment: Experiment) -> Snapshot:
        """Return the snapshot of one moment: nothing is awaited after the last look at the store."""
        snapshot = self._snapshots.build(experiment)
        if experiment.spec is None or experiment.deleting:
            return snapshot
        revision = self._store.revision
        answers = await self._ask(experiment, experiment.spec, snapshot.children)
        if self._store.revision != revision:
            snapshot = self._snapshots.build(experiment)
        return replace(snapshot, **answers)

    async def _ask(self, experiment: Experiment, spec: ExperimentSpec, children: Sequence[ChildFact]) -> dict[str, Any]:
        """Return the parts of the snapshot that are not watched: claims, and why waiting children wait."""
        missing: tuple[tuple[str, str], ...] = ()
        pending: tuple[tuple[str, str], ...] = ()
        volume = spec.storage.volume
        if volume is not None:
            claim = await self._explainer.claim(experiment.namespace, volume.claim_name)
            if claim is None:
                missing = ((CLAIMS.kind, volume.claim_name),)
            elif claim.phase != "Bound":
                pending = ((volume.claim_name, claim.storage_class),)
        notes = await self._explainer.notes(experiment.namespace, children, self._now())
        return {"missing_objects": missing, "pending_claims": pending, "notes": notes}

    async def _ensure_service_account(self, namespace: str) -> None:
        """Make the account that stages run as: no token is mounted, no right is bound to it."""
        at = self._monotonic()
        if at - self._accounts.get(namespace, float("-inf")) < ACCOUNT_TTL_S:
            return
        self._check()
        account = {
            "apiVersion": SERVICE_ACCOUNTS.api_version,
            "kind": SERVICE_ACCOUNTS.kind,
            "metadata": {
                "name": self._settings.render.service_account,
                "namespace": namespace,
                "labels": {names.LABEL_MANAGED_BY: names.MANAGER},
            },
            "automountServiceAccountToken": False,
        }
        await self._client.apply(SERVICE_ACCOUNTS, account)
        self._accounts[namespace] = at

    async def _explain(self, obj: JsonObject, experiment: Experiment, error: KubeError) -> None:
        """Tell the user of a refusal that will not go away by itself, e.g. quota, admission or a missing right.

        The rest of the status stays as it was: what was not applied has not happened.
        """
        self._accounts.pop(namespace_of(obj), None)
        if error.code not in REFUSALS or error.reason == NOT_SERVED:
            return
        status = with_refusal(experiment, error.message, self._now())
        if status == experiment.status:
            return
        event = PlannedEvent("Warning", Reason.API_REFUSED.value, words.api_refused(error.message))
        with contextlib.suppress(NotLeadingError):
            try:
                await self._write_status(obj, experiment, Plan(status=status))
            except KubeError as second:
                log.warning("the refusal could not be written to the status: %s", second)
            await self._post(obj, event)

    def _check(self) -> None:
        if not self._may_act():
            raise NotLeadingError


async def _together(writes: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Carry out writes of which none needs another, some at a time; all are tried before an error is raised."""
    limit = asyncio.Semaphore(TOGETHER)

    async def carry_out(write: Coroutine[Any, Any, None]) -> None:
        async with limit:
            await write

    ends = await asyncio.gather(*(carry_out(write) for write in writes), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end


def with_refusal(experiment: Experiment, message: str, now: datetime) -> ExperimentStatus:
    """Return the experiment's status with a blocker and the condition Blocked that carry the API server's words."""
    status, text = experiment.status, words.api_refused(message)
    target = f"{names.KIND}/{experiment.name}"
    if any(known.object == target and known.message == text for known in status.blockers):
        return status
    stamp = to_time(now)
    blocker = Blocker(object=target, reason=Reason.API_REFUSED.value, message=text, since=stamp)
    blocked = Condition(
        type=ConditionType.BLOCKED.value,
        status="True",
        observed_generation=experiment.generation,
        last_transition_time=stamp,
        reason=Reason.API_REFUSED.value,
        message=text,
    )
    others = tuple(known for known in status.conditions if known.type != blocked.type)
    rest = tuple(known for known in status.blockers if known.object != target)
    return status.model_copy(update={"blockers": (blocker, *rest)[:MAX_BLOCKERS], "conditions": (*others, blocked)})


def merge_patch_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> JsonObject:
    """Return the JSON merge patch that turns `old` into `new`; keys that must go become None."""
    patch: JsonObject = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = merge_patch_of(before, value)
            if inner:
                patch[key] = inner
        elif key not in old or before != value:
            patch[key] = value
    return patch
