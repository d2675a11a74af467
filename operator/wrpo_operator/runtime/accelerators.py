"""Accelerators that experiments may use: nodes and Kueue's objects, listed while an experiment needs them.

Kubelets update their nodes all the time, and of each node only the few fields of NodeFact matter. Nodes are therefore
not watched but listed every REFRESH_S, less often where a list takes long, and only nodes with accelerators are kept.
An experiment whose accelerators change is reconciled. A refused request is logged once and becomes a fault of the
inventory; an unreachable server never does, because an empty inventory would place stages on CPUs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from wrpo_operator.plan.model import Experiment
from wrpo_operator.runtime.diagnostics import InFlight
from wrpo_operator.runtime.kube import KubeClient, KubeError, list_all
from wrpo_operator.runtime.resources import (
    CLUSTER_QUEUES,
    COHORTS,
    FLAVORS,
    LOCAL_QUEUES,
    NODES,
    JsonObject,
    Resource,
)
from wrpo_operator.sizing.flavors import QueueObjects, cluster_queue_of, fault_of_missing, names_of, queue_inventory
from wrpo_operator.sizing.inventory import Inventory
from wrpo_operator.sizing.nodes import node_inventory
from wrpo_operator.sizing.offers import NodeFact, node_fact
from wrpo_operator.sizing.profiles import Profile, profile_inventory
from wrpo_operator.sizing.selection import Selection, claims_devices, selection_of

log = logging.getLogger(__name__)
Key = tuple[str, str]
"""(namespace, name) of an experiment"""
REFRESH_S = 30.0
PAUSE = 20.0
"""Minimum pause between two refreshes, as a multiple of the time that one takes: at most 5 % of the time."""
STALE_S = 180.0
"""Age at which what was read is not used before it is read again, because no experiment needed it for some time."""
ASKING_S = 900.0
"""Time for which an experiment counts as interested after its last reconcile; the resync is more frequent."""
SPREAD_S = 10.0
"""Time over which the reconciles because of one change are spread."""
NODES_REMEDY = (
    "Allow the operator to list nodes (accelerators.readNodes of the chart's values), or describe the accelerators in "
    "accelerators.profiles."
)
QUEUES_REMEDY = (
    "Allow the operator to read Kueue's objects (accelerators.readQueues of the chart's values), or describe the "
    "accelerators in accelerators.profiles."
)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class AcceleratorSettings:
    """Sources of the inventory."""

    enabled: bool = False
    read_nodes: bool = False
    read_queues: bool = False
    profiles: tuple[Profile, ...] = ()
    prices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Nodes:
    """All nodes with accelerators, and the number of all nodes."""

    facts: tuple[NodeFact, ...]
    total: int


@dataclass(frozen=True, slots=True)
class _Queues:
    """Kueue's objects that belong to no namespace, by name."""

    cluster_queues: Mapping[str, Any]
    cohorts: Mapping[str, Any]
    flavors: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Question:
    """What an inventory depends on besides the cluster: experiments with equal questions share it."""

    selection: Selection
    namespace: str = ""
    queue: str = ""
    """Empty: no queue; the namespace is then empty too."""


class _Reading(Generic[V]):
    """The last reply to one request: a value, or why the server refuses it. Concurrent callers share a request."""

    def __init__(self, what: str, ask: Callable[[], Coroutine[Any, Any, V]], monotonic: Callable[[], float]) -> None:
        self._what = what
        self._ask = ask
        self._monotonic = monotonic
        self._read_at = float("-inf")
        self._flights: InFlight[str, None] = InFlight()
        self.value: V | None = None
        self.refusal = ""
        """The server's message if it does not allow the request."""
        self.version = 0
        """Counter of changes."""

    async def current(self) -> V | None:
        """Return the value, which is at most STALE_S old, or None if it is refused; KubeError if it is unknown."""
        if self._monotonic() - self._read_at >= STALE_S:
            await self.refresh()
        return self.value

    async def refresh(self) -> None:
        """Read again; raise KubeError if the server does not reply."""
        await asyncio.shield(self._flights.of(self._what, self._read))

    async def _read(self) -> None:
        try:
            value, refusal = await self._ask(), ""
        except KubeError as error:
            if error.code != 403:
                raise
            value, refusal = None, error.words
            if not self.refusal:
                log.warning("%s cannot be read: %s", self._what, error.message)
        self.version += (value, refusal) != (self.value, self.refusal)
        self.value, self.refusal, self._read_at = value, refusal, self._monotonic()


class Accelerators:
    """Inventories of experiments. `wake(key, delay_s)` is called for each whose inventory has changed."""

    def __init__(
        self,
        client: KubeClient,
        settings: AcceleratorSettings,
        *,
        monotonic: Callable[[], float],
        wake: Callable[[Key, float], None] = lambda _key, _delay_s: None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._monotonic = monotonic
        self._wake = wake
        self._nodes = _Reading("nodes", self._list_nodes, monotonic)
        self._queues = _Reading("Kueue's ClusterQueues", self._list_queues, monotonic)
        self._local: dict[Key, _Reading[JsonObject | None]] = {}
        """(namespace, name) of LocalQueues"""
        self._asked: dict[Key, tuple[float, _Question, Inventory | None]] = {}
        """Experiment -> when and what it asked, and its inventory."""
        self._answers: dict[_Question, tuple[tuple[int, ...], Inventory | None]] = {}
        """Inventories since the last refresh, and the versions of what they are based on."""

    async def of(self, experiment: Experiment) -> Inventory | None:
        """Return the accelerators that an experiment may use; None if nothing describes any.

        spec.accelerator precedes all other sources, and devices of ResourceClaims are not sized: neither needs an
        inventory. Raises KubeError if the server does not reply and nothing is known.
        """
        spec, key = experiment.spec, (experiment.namespace, experiment.name)
        needs_none = spec is None or spec.accelerator is not None or claims_devices(spec)
        if not self._settings.enabled or spec is None or needs_none:
            self.forget(key)
            return None
        queue = (spec.scheduling.queue_name or "") if self._settings.read_queues else ""
        question = _Question(selection_of(spec), experiment.namespace if queue else "", queue)
        answer = await self._answer(question)
        self._asked[key] = (self._monotonic(), question, answer)
        return answer

    def forget(self, key: Key) -> None:
        """Drop what is known about an experiment."""
        self._asked.pop(key, None)

    async def run(self) -> None:
        """Refresh until cancelled, while experiments ask."""
        pause_s = REFRESH_S
        while True:
            await asyncio.sleep(pause_s)
            began = self._monotonic()
            await self.refresh()
            pause_s = max(REFRESH_S, PAUSE * (self._monotonic() - began))

    async def refresh(self) -> None:
        """Read again what experiments need, and wake those whose inventory has changed."""
        now = self._monotonic()
        self._asked = {key: asked for key, asked in self._asked.items() if now - asked[0] < ASKING_S}
        questions = {question for _, question, _ in self._asked.values()}
        used = {(question.namespace, question.queue) for question in questions if question.queue}
        self._local = {queue: reading for queue, reading in self._local.items() if queue in used}
        self._answers.clear()
        if not questions:
            return
        readings: list[_Reading[Any]] = [self._nodes] if self._settings.read_nodes else []
        readings += [self._queues, *self._local.values()] if used else []
        try:
            for reading in readings:
                await reading.refresh()
            answers = {question: await self._answer(question) for question in questions}
        except KubeError as error:
            log.info("accelerators are not refreshed: %s", error.message)
            return
        changed = [key for key, (_, question, before) in self._asked.items() if answers.get(question, before) != before]
        for place, key in enumerate(sorted(changed)):
            at, question, _ = self._asked[key]
            self._asked[key] = (at, question, answers[question])
            self._wake(key, SPREAD_S * place / len(changed))

    async def _answer(self, question: _Question) -> Inventory | None:
        """Return the inventory of the first source that describes accelerators: queue, nodes, profiles."""
        nodes = await self._nodes.current() if self._settings.read_nodes else None
        queues = await self._queue_objects(question) if question.queue else None
        local = self._local.get((question.namespace, question.queue))
        versions = (self._nodes.version, self._queues.version, local.version if local else 0)
        known = self._answers.get(question)
        if known is None or known[0] != versions:
            known = self._answers[question] = versions, self._decide(question, nodes, queues)
        return known[1]

    def _decide(self, question: _Question, nodes: _Nodes | None, queues: QueueObjects | str | None) -> Inventory | None:
        settings = self._settings
        facts = None if nodes is None else nodes.facts
        faults: tuple[str, ...] = ()
        found = None
        if isinstance(queues, str):
            faults = (queues,)
        elif queues is not None:
            found = queue_inventory(queues, facts, question.selection, settings.profiles, settings.prices)
        if found is None and nodes is not None:
            known = settings.profiles, settings.prices
            found = node_inventory(nodes.facts, question.selection, *known, num_nodes=nodes.total)
            found = replace(found, faults=(*faults, *found.faults))
            if not found.groups and settings.profiles:
                found = profile_inventory(settings.profiles, settings.prices, faults=found.faults)
        elif found is None:
            found = self._without_nodes(faults)
        return found

    def _without_nodes(self, faults: tuple[str, ...]) -> Inventory | None:
        """Return what profiles describe, or why nothing is known; None if no source is configured."""
        if self._nodes.refusal:
            faults = (*faults, f"Nodes cannot be read: {_sentence(self._nodes.refusal)} {NODES_REMEDY}")
        if self._settings.profiles:
            return profile_inventory(self._settings.profiles, self._settings.prices, faults=faults)
        return Inventory(source="nothing that can be read", faults=faults) if faults else None

    async def _queue_objects(self, question: _Question) -> QueueObjects | str:
        """Return the objects behind a LocalQueue, or the sentence about what is missing."""
        key = question.namespace, question.queue
        reading = self._local.get(key)
        if reading is None:

            async def ask() -> JsonObject | None:
                return await self._get_local_queue(key)

            reading = self._local[key] = _Reading(f"LocalQueue {'/'.join(key)}", ask, self._monotonic)
        local, queues = await reading.current(), await self._queues.current()
        refusal = reading.refusal or self._queues.refusal
        if refusal:
            return f"Queue {question.queue} cannot be read: {_sentence(refusal)} {QUEUES_REMEDY}"
        if local is None or queues is None:
            return fault_of_missing(question.queue, question.namespace, None)
        name = cluster_queue_of(local)
        if name not in queues.cluster_queues:
            return fault_of_missing(question.queue, question.namespace, name)
        return QueueObjects(
            queue=question.queue,
            cluster_queue=name,
            cluster_queues=queues.cluster_queues,
            cohorts=queues.cohorts,
            flavors=queues.flavors,
        )

    async def _get_local_queue(self, key: Key) -> JsonObject | None:
        try:
            return await self._client.get(LOCAL_QUEUES, key[1], key[0])
        except KubeError as error:
            if error.not_found:
                return None
            raise

    async def _list_queues(self) -> _Queues:
        """List Kueue's objects, few of which exist. A type that is not served has none."""

        async def listed(resource: Resource) -> Mapping[str, Any]:
            try:
                return names_of(await list_all(self._client, resource))
            except KubeError as error:
                if error.not_found:
                    return {}
                raise

        return _Queues(await listed(CLUSTER_QUEUES), await listed(COHORTS), await listed(FLAVORS))

    async def _list_nodes(self) -> _Nodes:
        extra = frozenset(profile.resource for profile in self._settings.profiles)
        facts: list[NodeFact] = []
        total = 0
        async for page in self._client.pages(NODES):
            total += len(page.items)
            facts += [fact for node in page.items if (fact := node_fact(node, extra)) is not None]
        return _Nodes(tuple(sorted(facts, key=lambda fact: fact.name)), total)


def _sentence(text: str) -> str:
    return f"{text.rstrip('. ')}."
