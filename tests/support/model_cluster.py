"""A cluster in memory, as far as the planner can tell: experiments, their children, artifacts, and a clock.

`reconcile` plans, checks what must hold of every plan, applies it and checks that planning again gives nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from support.builders import FACTS, NOON, make_pod, merged, raw_spec

from wrpo_engine.config import ErrorInfo, TerminationMessage
from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.hashing import artifact_key, canonical_json
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import ExperimentStatus, Phase, StageState
from wrpo_operator.plan.classify import LIVE
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment, Plan, PlannedAttempt, Snapshot
from wrpo_operator.plan.placing import described
from wrpo_operator.plan.planner import plan
from wrpo_operator.plan.storage import binding_of
from wrpo_operator.sizing.inventory import Inventory

FINISHED = frozenset({ChildState.SUCCEEDED, ChildState.FAILED})


@cache
def _parsed(text: str) -> ExperimentSpec:
    return parse_spec(json.loads(text))


@dataclass
class Stored:
    """An experiment in the store."""

    name: str
    uid: str
    spec: dict[str, Any]
    generation: int = 1
    deleting: bool = False
    status: ExperimentStatus = field(default_factory=ExperimentStatus)

    def read(self) -> Experiment:
        return Experiment(
            name=self.name,
            namespace="ml",
            uid=self.uid,
            generation=self.generation,
            deleting=self.deleting,
            created_at=NOON,
            spec=_parsed(canonical_json(self.spec)),
            status=self.status,
        )


class ModelCluster:
    """The world of the planner's tests."""

    def __init__(self) -> None:
        self.now: datetime = NOON
        self.experiments: dict[str, Stored] = {}
        self.children: dict[str, ChildFact] = {}
        self.pods: dict[str, str] = {}
        """Pods that still run although their child is gone -> the artifact that they write."""
        self.artifacts: set[str] = set()
        self.failures: Counter[tuple[str, str]] = Counter()
        """(experiment, stage hash) -> failures that used up a retry since the stage was last allowed to try again."""
        self.deletes_at_once = False
        """Whether children that the operator deletes are gone at once, before their pods, or wait for these."""
        self.started: Counter[str] = Counter()
        """artifact key -> children made."""
        self.accelerators: Inventory | None = None
        self.facts: ModelFacts | None = FACTS
        """What inspections report of every model."""
        self.facts_by_stage: dict[str, ModelFacts] = {}
        """What they report of some models instead, by the name of the inspection."""

    def add(self, name: str, **changes: Any) -> Stored:
        stored = Stored(name=name, uid=f"uid-{name}", spec=raw_spec(**changes))
        self.experiments[name] = stored
        return stored

    def edit(self, name: str, **changes: Any) -> None:
        stored = self.experiments[name]
        spec = merged(stored.spec, changes)
        if spec == stored.spec:
            return
        for stage in stored.status.stages:
            if stage.state is StageState.FAILED:
                self.failures[name, stage.hash] = 0
        stored.spec = spec
        stored.generation += 1

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def snapshot(self, name: str) -> Snapshot:
        stored = self.experiments[name]
        children = tuple(self.children.values())
        return Snapshot(
            experiment=stored.read(),
            children=tuple(child for child in children if child.experiment_uid == stored.uid),
            foreign=tuple(child for child in children if child.experiment_uid != stored.uid and child.state in LIVE),
            pods={key: (make_pod(name, node="node-1"),) for name, key in self.pods.items()},
            accelerators=self.accelerators,
        )

    def reconcile(self, name: str, *, lose_status: bool = False) -> Plan:
        snapshot = self.snapshot(name)
        answer = plan(snapshot, self.now)
        self._check(snapshot, answer)
        self._apply(name, answer)
        if lose_status:
            return answer
        assert answer.status is not None
        self.experiments[name].status = answer.status
        if self.deletes_at_once and answer.delete:
            return answer  # children that are gone leave room for what comes next
        again = plan(self.snapshot(name), self.now)
        assert (again.apply, again.suspend, again.delete, again.events) == ((), (), (), ()), "a second look acts again"
        assert again.status == answer.status, "a second look writes again"
        return answer

    def _check(self, snapshot: Snapshot, answer: Plan) -> None:
        live = {(child.stage, child.stage_hash) for child in snapshot.children if child.state in LIVE}
        busy = {child.artifact_key for child in snapshot.foreign if not child.suspended} | set(snapshot.pods)
        spec = snapshot.experiment.spec
        assert spec is not None
        if not answer.apply:
            return
        for start in answer.apply:
            node = start.node
            assert (str(node.id), node.hash) not in live, f"{node.id} has a live attempt already"
            assert start.artifact_key not in busy, f"{node.id} is being made by another experiment, or by a pod"
            needed = {
                str(upstream): artifact_key(
                    binding_of(spec.storage.chosen).identity, str(upstream), start.input_hashes[role]
                )
                for role, upstream in node.inputs.items()
            }
            missing = [upstream for upstream, key in needed.items() if key not in self.artifacts]
            assert not missing, f"{node.id} starts before {missing}"
            assert not spec.suspend, f"{node.id} starts in a suspended experiment"
        assert len({start.child_name for start in answer.apply}) == len(answer.apply)

    def _apply(self, name: str, answer: Plan) -> None:
        for start in answer.apply:
            self._create(name, start)
        for change in answer.suspend:
            child = self.children[change.name]
            state = ChildState.SUSPENDED if change.suspend else ChildState.PENDING
            self.children[change.name] = replace(child, suspended=change.suspend, state=state)
        for deletion in answer.delete:
            if self.deletes_at_once:
                self.delete_at_once(deletion.name)
            else:
                self.delete(deletion.name)

    def _create(self, name: str, start: PlannedAttempt) -> None:
        if start.child_name in self.children:
            return
        training = start.node.shape is Shape.TRAINING
        spec = self.experiments[name].read().spec
        assert spec is not None
        self.started[start.artifact_key] += 1
        self.children[start.child_name] = ChildFact(
            kind="PyTorchJob" if training else "Job",
            name=start.child_name,
            uid=f"{start.child_name}-{self.now.isoformat()}",
            experiment=name,
            experiment_uid=self.experiments[name].uid,
            stage=str(start.node.id),
            stage_hash=start.node.hash,
            artifact_key=start.artifact_key,
            attempt=start.attempt,
            state=ChildState.PENDING,
            suspended=False,
            created_at=self.now,
            placement=described(spec, start.node),
        )

    def delete(self, name: str) -> None:
        """A live child's pods take a while to go; a finished one is gone at once."""
        child = self.children[name]
        if child.state in FINISHED:
            del self.children[name]
        else:
            self.children[name] = replace(child, state=ChildState.DELETING)

    def vanish(self, name: str) -> None:
        del self.children[name]

    def delete_at_once(self, name: str) -> None:
        """The child is gone, as by deletion in the background; a pod that ran has its grace period."""
        child = self.children.pop(name)
        if child.state is ChildState.RUNNING:
            self.pods[f"{name}-0"] = child.artifact_key

    def run(self, name: str) -> None:
        self.children[name] = replace(self.children[name], state=ChildState.RUNNING, started_at=self.now)

    def succeed(self, name: str) -> None:
        child = self.children[name]
        self.artifacts.add(child.artifact_key)
        has_facts = child.stage.partition("/")[0] in {"inspect", "fetch"}
        facts = self.facts_by_stage.get(child.stage, self.facts) if has_facts else None
        message = TerminationMessage(outcome="Succeeded", facts=facts)
        pod = make_pod(f"{name}-0", exit_code=0, termination=message)
        self.children[name] = replace(child, state=ChildState.SUCCEEDED, finished_at=self.now, pods=(pod,))

    def fail(self, name: str, exit_code: int) -> None:
        child = self.children[name]
        error = ErrorInfo(code="Broken", message="It broke.")
        self.failures[child.experiment, child.stage_hash] += 1
        self._end(child, make_pod(f"{name}-0", exit_code=exit_code, error=error, finished_at=self.now))

    def run_out_of_memory(self, name: str) -> None:
        """End a child for lack of accelerator memory. It uses up a retry unless the operator can give more room."""
        child = self.children[name]
        chosen = child.placement is not None and child.placement.per_pod > 0
        if not chosen:
            self.failures[child.experiment, child.stage_hash] += 1
        error = ErrorInfo(code="OutOfMemory", message="The accelerator's memory is full.")
        self._end(child, make_pod(f"{name}-0", exit_code=1, error=error, finished_at=self.now))

    def disrupt(self, name: str) -> None:
        self._end(self.children[name], make_pod(f"{name}-0", exit_code=137, disrupted=True, finished_at=self.now))

    def _end(self, child: ChildFact, pod: Any) -> None:
        self.children[child.name] = replace(child, state=ChildState.FAILED, finished_at=self.now, pods=(pod,))

    def finish_all(self, name: str, *, lose_status: bool = False) -> None:
        """Let every child that has started succeed, and look; the last status can be lost."""
        for child in list(self.children.values()):
            if child.state is ChildState.PENDING:
                self.run(child.name)
            if self.children[child.name].state is ChildState.RUNNING:
                self.succeed(child.name)
        self.reconcile(name, lose_status=lose_status)

    def run_fairly(self, name: str, *, rounds: int = 200) -> Phase:
        """Let every child of everybody run and succeed until the experiment has ended."""
        for _ in range(rounds):
            for other in self.experiments:
                self.reconcile(other)
            phase = self.experiments[name].status.phase
            if phase in {Phase.SUCCEEDED, Phase.FAILED}:
                return phase
            self.pods.clear()
            for child in list(self.children.values()):
                match child.state:
                    case ChildState.PENDING:
                        self.run(child.name)
                    case ChildState.RUNNING:
                        self.succeed(child.name)
                    case ChildState.DELETING:
                        self.vanish(child.name)
                    case _:
                        pass
            self.advance(600)
        raise AssertionError(f"{name} has not ended: {self.experiments[name].status}")


def at_stage(cluster: ModelCluster, stage: str, name: str = "demo") -> None:
    """Let everything before a stage succeed, until its child runs."""
    for _ in range(100):
        cluster.reconcile(name)
        for child in list(cluster.children.values()):
            if child.state is ChildState.PENDING:
                cluster.run(child.name)
            elif child.state is ChildState.RUNNING and child.stage != stage:
                cluster.succeed(child.name)
        if any(child.stage == stage for child in cluster.children.values()):
            cluster.reconcile(name)
            return
        cluster.advance(60)
    raise AssertionError(f"{stage} never started")


def child_of(cluster: ModelCluster, stage: str) -> str:
    return next(name for name, child in sorted(cluster.children.items()) if child.stage == stage)


def started(**changes: Any) -> ModelCluster:
    cluster = ModelCluster()
    cluster.add("demo", **changes)
    return cluster


def status_of(cluster: ModelCluster, name: str = "demo") -> ExperimentStatus:
    return cluster.experiments[name].status
