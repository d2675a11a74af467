"""Diagnostics of children that do not run: refused pods, queues, claims.

Events, Kueue's Workloads and claims are many, change often, and matter only while a child waits. They are therefore not
watched but listed when a child waits, once for all experiments of a namespace, and responses are cached. Concurrent
requests for the same list share one call, and no child waits for its response: the server reads all Events of a
namespace for it, which takes seconds where there are many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from wrpo_operator.api.backends import BACKENDS, CHILD_KINDS
from wrpo_operator.api.conditions import Reason
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment, Note, PodFact
from wrpo_operator.plan.storage import binding_of
from wrpo_operator.runtime.kube import KubeClient, KubeError, list_all
from wrpo_operator.runtime.kueue import workload_note, workload_owner
from wrpo_operator.runtime.observe import parse_time
from wrpo_operator.runtime.resources import CLAIMS, EVENTS, WORKLOADS, JsonObject, Resource
from wrpo_operator.runtime.trim import trim

ANSWER_TTL_S = 15.0
KEPT_S = 2 * ANSWER_TTL_S
"""How long a response is used while its successor is being requested."""
CREATE_FAILURES = frozenset(reason for kind in CHILD_KINDS.values() for reason in kind.creation_failures)
"""Event reasons of the controllers whose pods the API server refuses: quota, PodSecurity, webhooks."""
START_FAILURES = {reason.value: reason for reason in (Reason.MOUNT_FAILED, Reason.ATTACH_FAILED, Reason.SANDBOX_FAILED)}
"""Event reasons of kubelet and volume controllers for pods on a node whose containers cannot be created."""
START_PATIENCE = timedelta(seconds=30)
"""Volumes and sandboxes often take a few tries, e.g. while a node detaches a volume."""
START_FAILURE_AGE = timedelta(minutes=5)
"""The kubelet repeats every two minutes what still blocks a pod; older Events are obsolete."""
TELLING = CREATE_FAILURES | frozenset(START_FAILURES)
"""Reasons of the Events that are kept."""
WAITING = frozenset({ChildState.PENDING, ChildState.SUSPENDED})
GANG_MAY_WAIT = frozenset({ChildState.PENDING, ChildState.RUNNING})
Key = tuple[str, str]
Question = tuple[Resource, str, str]
"""(resource, namespace, field selector)"""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimFact:
    """A claim of the namespace; None if it does not exist."""

    phase: str
    storage_class: str


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TtlCache(Generic[K, V]):
    """Values that are fresh for ANSWER_TTL_S, and kept until KEPT_S."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()
        """By age, the oldest first."""

    def get(self, key: K) -> V | None:
        """Return a fresh value, else None."""
        at, value = self._entries.get(key, (float("-inf"), None))
        return value if self._monotonic() - at < ANSWER_TTL_S else None

    def last(self, key: K) -> V | None:
        """Return a value that need not be fresh."""
        at, value = self._entries.get(key, (float("-inf"), None))
        return value if self._monotonic() - at < KEPT_S else None

    def put(self, key: K, value: V) -> None:
        """Store a value with the current time, and evict values older than KEPT_S."""
        now = self._monotonic()
        self._entries.pop(key, None)
        while self._entries and now - next(iter(self._entries.values()))[0] >= KEPT_S:
            self._entries.popitem(last=False)
        self._entries[key] = (now, value)

    def __len__(self) -> int:
        return len(self._entries)


class InFlight(Generic[K, V]):
    """Requests in flight: a second caller waits for the response to the first."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}

    def of(self, key: K, ask: Callable[[], Coroutine[Any, Any, V]]) -> asyncio.Task[V]:
        """Return the request in flight; callers shield it from their own cancellation."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(ask())
            task.add_done_callback(lambda done: self._finished(key, done))
        return task

    def _finished(self, key: K, task: asyncio.Task[V]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and task.exception() is not None:
            log.debug("%s is not known: %s", key, task.exception())


class DiagnosticsClient:
    """Asks the API server why children wait. `wake` is called for each experiment whose response has changed."""

    def __init__(
        self, client: KubeClient, monotonic: Callable[[], float], wake: Callable[[Key], None] = lambda _key: None
    ) -> None:
        self._client = client
        self._wake = wake
        self._lists: TtlCache[Question, tuple[JsonObject, ...]] = TtlCache(monotonic)
        self._list_flights: InFlight[Question, tuple[JsonObject, ...]] = InFlight()
        self._waiters: dict[Question, set[Key]] = {}
        """Experiments that proceeded without the response."""
        self._claims: TtlCache[Key, ClaimFact] = TtlCache(monotonic)
        self._claim_flights: InFlight[Key, ClaimFact | None] = InFlight()

    async def unwatched(self, experiment: Experiment, children: Sequence[ChildFact], now: datetime) -> dict[str, Any]:
        """Return the parts of a snapshot that are not watched: its claim, and why waiting children wait."""
        missing: tuple[tuple[str, str], ...] = ()
        pending: tuple[tuple[str, str], ...] = ()
        notes: dict[str, tuple[Note, ...]] = {}
        name = binding_of(experiment.spec.storage.chosen).claim if experiment.spec else None
        try:
            if name is not None:
                claim = await self.claim(experiment.namespace, name)
                if claim is None:
                    missing = ((CLAIMS.kind, name),)
                elif claim.phase != "Bound":
                    pending = ((name, claim.storage_class),)
            # A blocker in the status is not removed only because nothing is known yet, e.g. after a restart.
            must_know = bool(experiment.status.blockers)
            waiter = (experiment.namespace, experiment.name)
            notes = await self.diagnostics(experiment.namespace, children, now, waiter=waiter, must_know=must_know)
        except KubeError as error:
            if error.unreachable:
                raise
            # Diagnostics decide nothing: children proceed without them.
            log.info("diagnostics are not available: %s", error.message)
        return {"missing_objects": missing, "pending_claims": pending, "notes": notes}

    async def diagnostics(
        self,
        namespace: str,
        children: Iterable[ChildFact],
        now: datetime,
        *,
        waiter: Key | None = None,
        must_know: bool = False,
    ) -> dict[str, tuple[Note, ...]]:
        """Return why children wait, by uid.

        A `waiter` gets cached values immediately, and is woken when they change; with `must_know` it waits if
        nothing is cached. A gang counts as running as soon as one of its pods runs, and may still wait for the others.
        """

        async def answer(resource: Resource, fields: str = "") -> tuple[JsonObject, ...]:
            return await self._answer((resource, namespace, fields), waiter, must_know=must_know)

        notes: dict[str, tuple[Note, ...]] = {}
        for child in children:
            is_gang = child.kind in BACKENDS and child.state in GANG_MAY_WAIT
            if child.suspended and child.queue and child.state in WAITING:
                notes[child.uid] = queue_notes(child, await answer(WORKLOADS))
            elif not child.suspended and (is_gang or (child.state in WAITING and not child.pods)):
                kinds = dict(makers(child))
                told = [await answer(EVENTS, f"involvedObject.kind={kind},type=Warning") for kind in kinds]
                events = tuple(event for events in told for event in events)
                notes[child.uid] = refusal_notes(child, events)
            if any(waits_on_its_node(pod, now) for pod in child.pods):
                events = await answer(EVENTS, "involvedObject.kind=Pod,type=Warning")
                notes[child.uid] = (*notes.get(child.uid, ()), *start_notes(child, events, now))
        return {uid: found for uid, found in notes.items() if found}

    async def claim(self, namespace: str, name: str) -> ClaimFact | None:
        """Return a claim's state, or None if it does not exist. A bound one is requested again only after an
        interval.
        """
        known = self._claims.get((namespace, name))
        if known is not None:
            return known
        return await asyncio.shield(
            self._claim_flights.of((namespace, name), lambda: self._ask_for_claim(namespace, name))
        )

    async def _ask_for_claim(self, namespace: str, name: str) -> ClaimFact | None:
        try:
            claim = await self._client.get(CLAIMS, name, namespace)
        except KubeError as error:
            if not error.not_found:
                raise
            return None
        fact = ClaimFact(
            phase=str((claim.get("status") or {}).get("phase") or "Pending"),
            storage_class=str((claim.get("spec") or {}).get("storageClassName") or ""),
        )
        if fact.phase == "Bound":
            self._claims.put((namespace, name), fact)
        return fact

    async def _answer(self, question: Question, waiter: Key | None, *, must_know: bool) -> tuple[JsonObject, ...]:
        known = self._lists.get(question)
        if known is not None:
            return known
        flight = self._list_flights.of(question, lambda: self._list(question))
        last = self._lists.last(question)
        if waiter is None or (last is None and must_know):
            return await asyncio.shield(flight)
        self._waiters.setdefault(question, set()).add(waiter)
        return last or ()

    async def _list(self, question: Question) -> tuple[JsonObject, ...]:
        resource, namespace, fields = question
        try:
            listed = await list_all(self._client, resource, namespace, field_selector=fields)
        except KubeError as error:
            # Kueue is not installed, or this operator may not list Workloads: the cause is unknown.
            if error.code not in {403, 404}:
                raise
            listed = []
        is_event = resource == EVENTS
        items = tuple(trim(resource, item) for item in listed if not is_event or item.get("reason") in TELLING)
        before = self._lists.last(question) or ()
        self._lists.put(question, items)
        for waiter in self._waiters.pop(question, ()) if items != before else ():
            self._wake(waiter)
        self._waiters.pop(question, None)
        return items


def queue_notes(child: ChildFact, workloads: Sequence[JsonObject]) -> tuple[Note, ...]:
    """Return the queue's message about a suspended child."""
    own = [workload for workload in workloads if workload_owner(workload) == child.uid]
    return tuple(note for workload in own if (note := workload_note(workload)) is not None)


def makers(child: ChildFact) -> tuple[tuple[str, str], ...]:
    """Return kind and name of every object that leads to a child's pods."""
    return CHILD_KINDS[child.kind].makers(child.name)


def refusal_notes(child: ChildFact, events: Sequence[Mapping[str, object]]) -> tuple[Note, ...]:
    """Return the newest refusal of a child's pods, unless a later pod was created, which makes it obsolete."""
    own = makers(child)
    last_pod = max((pod.created_at for pod in child.pods if pod.created_at is not None), default=None)
    newest: tuple[str, str] | None = None
    for event in events:
        about = event.get("involvedObject")
        is_own = isinstance(about, Mapping) and (about.get("kind"), about.get("name")) in own
        if not is_own or event.get("reason") not in CREATE_FAILURES:
            continue
        when = str(event.get("lastTimestamp") or event.get("eventTime") or "")
        at = parse_time(when)
        if last_pod is not None and (at is None or at <= last_pod):
            continue
        if newest is None or when >= newest[0]:
            newest = (when, str(event.get("message") or "the cluster reported no reason"))
    if newest is None:
        return ()
    return (Note(f"{child.kind}/{child.name}", refusal_reason(newest[1]), newest[1]),)


def waits_on_its_node(pod: PodFact, now: datetime) -> bool:
    """Return whether a pod has a node but no container for longer than usual, and reports no reason."""
    is_quiet = not (pod.waiting_reason or pod.unschedulable_message)
    is_old = pod.created_at is not None and now - pod.created_at >= START_PATIENCE
    return pod.phase == "Pending" and pod.node is not None and pod.init_since is None and is_quiet and is_old


def start_notes(child: ChildFact, events: Sequence[Mapping[str, object]], now: datetime) -> tuple[Note, ...]:
    """Return why pods do not start on their nodes: each cause once, with the first pod that has it."""
    causes: dict[tuple[Reason, str], Note] = {}
    for pod in child.pods:
        told = [event for event in events if waits_on_its_node(pod, now) and _keeps(event, pod, now)]
        event = max(told, key=_weight, default=None)
        if event is not None:
            reason, message = START_FAILURES[str(event.get("reason"))], str(event.get("message") or "no reason given")
            causes.setdefault((reason, message), Note(f"Pod/{pod.name}", reason, message))
    return tuple(causes.values())


def _keeps(event: Mapping[str, object], pod: PodFact, now: datetime) -> bool:
    about = event.get("involvedObject")
    is_own = isinstance(about, Mapping) and (about.get("kind"), about.get("name")) == ("Pod", pod.name)
    at = parse_time(event.get("lastTimestamp") or event.get("eventTime"))
    is_recent = at is not None and now - at <= START_FAILURE_AGE
    return is_own and is_recent and event.get("reason") in START_FAILURES


def _weight(event: Mapping[str, object]) -> tuple[bool, str]:
    """Return a sort key: messages with a cause before timeouts, then newest first."""
    return "timed out" not in str(event.get("message")), str(event.get("lastTimestamp") or event.get("eventTime"))


def refusal_reason(message: str) -> Reason:
    """Distinguish quota, PodSecurity and webhooks by the API server's message."""
    text = message.lower()
    if "exceeded quota" in text or "failed quota" in text:
        return Reason.QUOTA_EXCEEDED
    if "violates podsecurity" in text:
        return Reason.POD_SECURITY
    if "admission webhook" in text or "validatingadmissionpolicy" in text:
        return Reason.ADMISSION_DENIED
    return Reason.PODS_REFUSED
