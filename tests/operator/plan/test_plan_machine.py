"""The planner against a cluster that does anything a cluster can do. WRPO_MACHINE_EXAMPLES=200 searches for longer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import Phase as Search
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.builders import AUTOMATIC
from support.model_cluster import FINISHED, ModelCluster

from wrpo_operator.api.status import Phase, StageState
from wrpo_operator.plan.classify import ENDED, LIVE
from wrpo_operator.plan.model import ChildState
from wrpo_operator.sizing.inventory import AcceleratorGroup, Inventory

RETRY_LIMIT = 1
NAMES = st.sampled_from(["first", "second"])
PICK = st.integers(0, 1000)
SOURCES = {"name": "a", "model": "org/a"}, {"name": "b", "model": "org/b"}
EDITS = st.sampled_from(
    [
        {"training": {"learningRate": 1e-6}},
        {"training": {"learningRate": 3e-7}},
        {"training": {"objective": "DPO"}},
        {"training": {"objective": "WRPO-DPO"}},
        {"sources": list(SOURCES)},
        {"sources": [SOURCES[0]]},
        {"sampling": {"shards": 2}},
        {"resources": {"sample": {"requests": {"cpu": 1}}}},
        {"reuse": {"salt": "again"}},
        {"sampling": {"onSourceFailure": "Continue"}},
        {"sampling": {"onSourceFailure": "Fail"}},
        {"deadlines": {"activeSeconds": 900}},
        {"suspend": True},
        {"suspend": False},
    ]
)

H100 = AcceleratorGroup(name="H100", resource="nvidia.com/gpu", memory_mib=81559, per_node=8, nodes=4)
INVENTORIES = (
    None,
    Inventory(source="no nodes"),
    Inventory(groups=(replace(H100, name="L4", memory_mib=23034, per_node=1, nodes=1),), source="one node"),
    Inventory(groups=(H100,), source="four nodes"),
)


class PlannerMachine(RuleBasedStateMachine):
    """Two experiments that share artifacts; children start, end, vanish; specs are edited; status writes are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = ModelCluster()
        self.recorded_ends: dict[tuple[str, str, str], StageState] = {}

    @initialize(queued=st.booleans(), at_once=st.booleans(), placed=st.booleans())
    def two_experiments(self, *, queued: bool, at_once: bool, placed: bool) -> None:
        self.cluster.deletes_at_once = at_once
        common: dict[str, Any] = {"retries": {"limit": RETRY_LIMIT}, "sources": list(SOURCES)}
        chosen: Mapping[str, Any] = AUTOMATIC if placed else {}
        self.cluster.add("first", **common, **chosen)
        more = {"scheduling": {"queueName": "gpus"}} if queued else {}
        self.cluster.add("second", **common, **more, training={"objective": "DPO"})

    def pick(self, states: frozenset[ChildState], number: int) -> str | None:
        names = sorted(child.name for child in self.cluster.children.values() if child.state in states)
        return names[number % len(names)] if names else None

    def has(self, *states: ChildState) -> bool:
        return any(child.state in states for child in self.cluster.children.values())

    @rule(name=NAMES)
    def look(self, name: str) -> None:
        self.cluster.reconcile(name)

    @rule(name=NAMES)
    def look_but_lose_the_status(self, name: str) -> None:
        self.cluster.reconcile(name, lose_status=True)

    @rule(name=NAMES, changes=EDITS)
    def edit(self, name: str, changes: dict[str, Any]) -> None:
        self.cluster.edit(name, **changes)

    @rule(seconds=st.sampled_from([1, 15, 3600]))
    def wait(self, seconds: int) -> None:
        self.cluster.advance(seconds)

    @precondition(lambda self: self.has(ChildState.PENDING))
    @rule(number=PICK)
    def child_runs(self, number: int) -> None:
        self.cluster.run(self.pick(frozenset({ChildState.PENDING}), number) or "")

    @precondition(lambda self: self.has(ChildState.RUNNING))
    @rule(number=PICK)
    def child_succeeds(self, number: int) -> None:
        self.cluster.succeed(self.pick(frozenset({ChildState.RUNNING}), number) or "")

    @precondition(lambda self: self.has(ChildState.RUNNING))
    @rule(number=PICK)
    def children_succeed_for_a_while(self, number: int) -> None:
        """Get deep into the graph."""
        for _ in range(number % 12):
            for child in list(self.cluster.children.values()):
                if child.state is ChildState.PENDING:
                    self.cluster.run(child.name)
                elif child.state is ChildState.RUNNING:
                    self.cluster.succeed(child.name)
            for name in ("first", "second"):
                self.cluster.reconcile(name)

    @precondition(lambda self: self.has(ChildState.RUNNING))
    @rule(number=PICK, exit_code=st.sampled_from([1, 1, 137, 75, 65]))
    def child_fails(self, number: int, exit_code: int) -> None:
        self.cluster.fail(self.pick(frozenset({ChildState.RUNNING}), number) or "", exit_code)

    @rule(inventory=st.sampled_from(INVENTORIES))
    def accelerators_come_or_go(self, inventory: Inventory | None) -> None:
        self.cluster.accelerators = inventory

    @precondition(lambda self: self.has(ChildState.RUNNING))
    @rule(number=PICK)
    def child_runs_out_of_memory(self, number: int) -> None:
        self.cluster.run_out_of_memory(self.pick(frozenset({ChildState.RUNNING}), number) or "")

    @precondition(lambda self: self.has(ChildState.RUNNING))
    @rule(number=PICK)
    def child_is_disrupted(self, number: int) -> None:
        self.cluster.disrupt(self.pick(frozenset({ChildState.RUNNING}), number) or "")

    @precondition(lambda self: self.has(*LIVE))
    @rule(number=PICK)
    def somebody_deletes_a_live_child(self, number: int) -> None:
        self.cluster.delete(self.pick(LIVE, number) or "")

    @precondition(lambda self: self.has(*LIVE))
    @rule(number=PICK)
    def a_live_child_is_gone_before_its_pods(self, number: int) -> None:
        self.cluster.delete_at_once(self.pick(LIVE, number) or "")

    @rule()
    def pods_end(self) -> None:
        self.cluster.pods.clear()

    @rule(number=PICK)
    def somebody_deletes_a_finished_child(self, number: int) -> None:
        name = self.pick(FINISHED, number)
        if name is not None and self.is_recorded(name):
            self.cluster.delete(name)

    def is_recorded(self, name: str) -> bool:
        """Whether the status knows this child's end: an end that nobody has seen cannot be remembered."""
        child = self.cluster.children[name]
        stage = self.cluster.experiments[child.experiment].status.stage_named(child.stage)
        if stage is None or stage.hash != child.stage_hash:
            return True
        return any(attempt.number == child.attempt and attempt.state in ENDED for attempt in stage.attempts)

    @precondition(lambda self: self.has(ChildState.DELETING))
    @rule(number=PICK)
    def deletion_finishes(self, number: int) -> None:
        self.cluster.vanish(self.pick(frozenset({ChildState.DELETING}), number) or "")

    @invariant()
    def at_most_one_live_attempt_per_stage_hash(self) -> None:
        live = [(child.experiment, child.stage_hash) for child in self.cluster.children.values() if child.state in LIVE]
        assert len(live) == len(set(live))

    @invariant()
    def nothing_runs_beside_a_pod_of_an_earlier_attempt(self) -> None:
        running = {child.artifact_key for child in self.cluster.children.values() if child.state is ChildState.RUNNING}
        assert not running.intersection(self.cluster.pods.values())

    @invariant()
    def retries_are_bounded(self) -> None:
        assert all(count <= RETRY_LIMIT + 1 for count in self.cluster.failures.values()), self.cluster.failures

    @invariant()
    def recorded_success_stays(self) -> None:
        for name, stored in self.cluster.experiments.items():
            present = {(name, stage.name, stage.hash): stage.state for stage in stored.status.stages}
            for key, state in self.recorded_ends.items():
                if key in present:
                    assert present[key] is state, f"{key} was {state}"
            kept = {key: state for key, state in self.recorded_ends.items() if key[0] != name or key in present}
            ended = {key: state for key, state in present.items() if state is StageState.SUCCEEDED}
            self.recorded_ends = kept | ended

    @invariant()
    def a_recorded_failure_stays_until_the_spec_is_edited(self) -> None:
        for stored in self.cluster.experiments.values():
            failed = stored.status.condition("Failed")
            if failed is not None:
                assert (failed.status == "True") is (stored.status.phase is Phase.FAILED)

    def teardown(self) -> None:
        """A fair run always ends where models fit; after a failure, an edit lets it succeed."""
        self.cluster.accelerators = INVENTORIES[-1]
        for name in list(self.cluster.experiments):
            # An edit also lets a stage start again to which no more room could be given.
            self.cluster.edit(name, suspend=False, ttlSecondsAfterFinished=50)
            if self.cluster.run_fairly(name) is Phase.FAILED:
                self.cluster.edit(name, ttlSecondsAfterFinished=60)
                assert self.cluster.run_fairly(name) is Phase.SUCCEEDED


PlannerMachine.TestCase.settings = settings(
    # Shrinking a run of the machine takes minutes; a failing run is printed step by step anyhow.
    phases=(Search.explicit, Search.reuse, Search.generate),
    max_examples=int(os.environ.get("WRPO_MACHINE_EXAMPLES", "10")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_planner_machine = PlannerMachine.TestCase
