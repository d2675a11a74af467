"""Two replicas of the real Reconciler against a server, with everything that can go wrong, in any order.

WRPO_MACHINE_EXAMPLES=200 searches for longer.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import Phase as Search
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fault_cluster import (
    NAMESPACE,
    CrashError,
    Fault,
    FaultyClient,
    Operator,
    Server,
    ended,
    is_suspended,
    labels_of,
    name_of,
)

from wrpo_operator.api import names
from wrpo_operator.api.backends import BACKENDS

RETRY_LIMIT = 2
SPEC: dict[str, Any] = {
    "sources": [{"name": "a", "model": "org/a"}],
    "training": {"objective": "SFTOnly"},
    "evaluation": {"enabled": False},
    "report": {"enabled": False},
    "modelCache": {"enabled": False},
    "retries": {"limit": RETRY_LIMIT, "backoffSeconds": 1},
}
EXPERIMENTS = ("first", "second")
FAULTS = st.sampled_from(
    [
        Fault("crash before"),
        Fault("crash after"),
        Fault("lost answer"),
        *(Fault("error", code) for code in (0, 409, 410, 429, 500)),
    ]
)
REPLICA = st.integers(0, 1)
PICK = st.integers(0, 1000)


class ReconcilerMachine(RuleBasedStateMachine):
    """Two experiments that ask for the same artifacts; one replica leads, the other lags behind."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.leader = 0
        self.replicas = [self.start(0), self.start(1)]
        self.recorded: dict[tuple[str, str, str], str] = {}
        self.failures: dict[str, int] = {}

    @initialize(shared=st.booleans(), backend=st.sampled_from(sorted(BACKENDS)))
    def two_experiments(self, *, shared: bool, backend: str) -> None:
        training = {**SPEC["training"], "backend": backend}
        for name in EXPERIMENTS:
            self.server.add(name, **{**SPEC, "training": training}, reuse={"salt": "" if shared else name})

    def start(self, number: int) -> Operator:
        client = FaultyClient(self.server, {}, calls=[])
        return Operator(self.server, client, f"op-{number}", may_act=lambda: self.leader == number)

    def look(self, number: int, *, lag: int = 0, faults: dict[int, Fault] | None = None) -> None:
        replica = self.replicas[number]
        at = len(replica.client.calls)
        replica.client.faults = {at + ahead: fault for ahead, fault in (faults or {}).items()}
        try:
            asyncio.run(replica.look(lag=lag))
        except CrashError:
            self.replicas[number] = self.start(number)

    # What the operators do

    @rule(lag=st.integers(0, 20))
    def the_leader_looks(self, lag: int) -> None:
        self.look(self.leader, lag=lag)

    @rule(ahead=st.integers(0, 12), fault=FAULTS, lag=st.integers(0, 5))
    def the_leader_looks_and_a_call_fails(self, ahead: int, fault: Fault, lag: int) -> None:
        self.look(self.leader, lag=lag, faults={ahead: fault})

    @rule(number=REPLICA)
    def a_replica_is_killed(self, number: int) -> None:
        self.replicas[number] = self.start(number)

    @rule()
    def the_other_one_takes_over(self) -> None:
        """As `Informer.invalidate` has it, everything is listed before anything is done."""
        self.leader = 1 - self.leader
        self.replicas[self.leader].seen = -1

    @rule()
    def one_that_does_not_lead_writes_nothing(self) -> None:
        writes = self.server.writes
        self.look(1 - self.leader)
        assert self.server.writes == writes

    @rule(number=PICK, copies=st.integers(1, 3))
    def an_old_event_arrives_again(self, number: int, copies: int) -> None:
        replica = self.replicas[self.leader]
        if self.server.changes and replica.seen > 0:
            for _ in range(copies):
                replica.deliver(*self.server.changes[number % replica.seen])

    # What the cluster does

    @rule(seconds=st.sampled_from([1, 5, 600]))
    def children_take_a_step(self, seconds: int) -> None:
        self.server.step(seconds=seconds)

    @precondition(lambda self: bool(self.running()))
    @rule(number=PICK, code=st.sampled_from([1, 1, 75, 137]))
    def a_child_fails(self, number: int, code: int) -> None:
        resource, child = self.running()[number % len(self.running())]
        key = labels_of(child)[names.LABEL_EXPERIMENT] + labels_of(child)[names.LABEL_STAGE_HASH]
        if self.failures.get(key, 0) >= RETRY_LIMIT:
            return
        self.failures[key] = self.failures.get(key, 0) + 1
        self.server.exit_codes = lambda _child: code
        self.server.advance(resource, child)
        self.server.exit_codes = lambda _child: 0

    @rule(name=st.sampled_from(EXPERIMENTS), suspend=st.booleans())
    def somebody_suspends_or_resumes(self, name: str, *, suspend: bool) -> None:
        self.server.edit(name, {**self.server.experiment(name)["spec"], "suspend": suspend})

    def running(self) -> list[Any]:
        pods = {name for _, _, name in self.server.objects}
        return [
            (resource, child)
            for resource, child in self.server.children()
            if not ended(child) and not is_suspended(child) and f"{name_of(child)}-0" in pods
        ]

    # What holds

    @invariant()
    def nothing_is_made_twice(self) -> None:
        """That no two live children make one artifact is checked by the server, at every child that is made."""
        assert set(self.server.made.values()) <= {1}

    @invariant()
    def an_end_that_was_recorded_stays(self) -> None:
        for name in EXPERIMENTS:
            stages = self.server.status(name).get("stages") or () if self.server.version > 1 else ()
            now = {(name, entry["name"], entry["hash"]): entry["state"] for entry in stages}
            for key, state in self.recorded.items():
                assert key[0] != name or now.get(key, state) == state, f"{key} was {state}, is {now.get(key)}"
            self.recorded |= {key: state for key, state in now.items() if state == "Succeeded"}

    def teardown(self) -> None:
        """From wherever it stands, a fair run ends well, and then nothing is written any more."""
        if not any(name == EXPERIMENTS[0] for _, _, name in self.server.objects):
            return
        for name in EXPERIMENTS:
            self.server.edit(name, {**self.server.experiment(name)["spec"], "suspend": False})
        for _ in range(60):
            self.look(self.leader)
            if all(self.server.status(name).get("phase") == "Succeeded" for name in EXPERIMENTS):
                break
            self.server.step(seconds=60)
        else:
            raise AssertionError({name: self.server.status(name).get("phase") for name in EXPERIMENTS})
        self.nothing_is_made_twice()
        self.an_end_that_was_recorded_stays()
        self.look(self.leader)
        writes = self.server.writes
        for _ in range(2):
            self.look(self.leader)
        self.replicas[self.leader] = self.start(self.leader)
        self.look(self.leader)
        assert self.server.writes == writes, "something is written though nothing has changed"
        assert {obj["metadata"]["namespace"] for _, obj in self.server.children()} == {NAMESPACE}


ReconcilerMachine.TestCase.settings = settings(
    # Shrinking a run of the machine takes minutes; a failing run is printed step by step anyhow.
    phases=(Search.explicit, Search.reuse, Search.generate),
    max_examples=int(os.environ.get("WRPO_MACHINE_EXAMPLES", "15")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_reconciler_machine = ReconcilerMachine.TestCase
