"""What of a namespace reaches one experiment's plan."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import raw_spec

from wrpo_operator.api import names
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.starts import key_of
from wrpo_operator.plan.wiring import PREPARE
from wrpo_operator.runtime.progress_server import ProgressStore
from wrpo_operator.runtime.resources import EXPERIMENTS, JOBS, PODS, JsonObject
from wrpo_operator.runtime.snapshot import SnapshotBuilder
from wrpo_operator.runtime.store import ObjectStore

SHARED = key_of(
    parse_spec(raw_spec()), next(node for node in build_graph(parse_spec(raw_spec())) if node.id == PREPARE)
)


class World:
    def __init__(self) -> None:
        self.store = ObjectStore()
        self.snapshots = SnapshotBuilder(self.store, ProgressStore(), backends=lambda: frozenset({"PyTorchJob"}))
        self._version = 0

    def version(self) -> str:
        self._version += 1
        return str(self._version)

    def experiment(self, name: str, *, generation: int = 1, namespace: str = "ml", **changes: Any) -> JsonObject:
        metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "generation": generation}
        return {"metadata": {**metadata, "resourceVersion": self.version()}, "spec": raw_spec(**changes)}

    def child(self, owner: str, *, key: str = SHARED, ended: bool = False, namespace: str = "ml") -> JsonObject:
        labels = {
            names.LABEL_EXPERIMENT: owner,
            names.LABEL_EXPERIMENT_UID: f"uid-{owner}",
            names.LABEL_STAGE: "prepare",
            names.LABEL_STAGE_HASH: "h",
            names.LABEL_ARTIFACT_KEY: key,
            names.LABEL_ATTEMPT: "1",
        }
        metadata = {"name": f"{owner}-{key}", "namespace": namespace, "uid": f"{owner}-{key}-{namespace}"}
        status = {"conditions": [{"type": "Complete", "status": "True"}]} if ended else {}
        body = {"kind": "Job", "metadata": {**metadata, "labels": labels, "resourceVersion": self.version()}}
        self.store.upsert(JOBS, {**body, "status": status})
        return body

    def pod(self, owner: str, *, phase: str = "Running", key: str = SHARED) -> None:
        """A pod whose child is gone."""
        labels = {names.LABEL_EXPERIMENT: owner, names.LABEL_ARTIFACT_KEY: key}
        name = f"{owner}-{phase}".lower()
        metadata = {"name": name, "namespace": "ml", "uid": name, "labels": labels, "resourceVersion": self.version()}
        self.store.upsert(PODS, {"metadata": metadata, "spec": {"nodeName": "n"}, "status": {"phase": phase}})

    def foreign(self, name: str, **changes: Any) -> list[str]:
        snapshot = self.snapshots.build(self.snapshots.experiment(self.experiment(name, **changes)))
        return sorted(child.name for child in snapshot.foreign)


@pytest.fixture
def world() -> World:
    return World()


def test_of_other_experiments_only_live_children_that_make_what_it_asks_for_are_seen(world: World) -> None:
    world.child("other")
    world.child("ended", ended=True)
    world.child("elsewhere", namespace="prod")
    world.child("unrelated", key="k")
    own = world.child("fusion")
    snapshot = world.snapshots.build(world.snapshots.experiment(world.experiment("fusion")))
    assert [child.experiment for child in snapshot.foreign] == ["other"]
    assert [child.name for child in snapshot.children] == [own["metadata"]["name"]]


@pytest.mark.parametrize("on_source_failure", ["Fail", "Continue"])
def test_pods_that_make_what_it_asks_for_are_seen_whoever_owns_them_and_though_their_child_is_gone(
    world: World, on_source_failure: str
) -> None:
    world.pod("fusion")
    world.pod("other")
    world.pod("other", phase="Succeeded")
    world.pod("unrelated", key="k")
    obj = world.experiment("fusion", sampling={"onSourceFailure": on_source_failure})
    pods = world.snapshots.build(world.snapshots.experiment(obj)).pods
    assert [(pod.name, pod.node) for pod in pods[SHARED]] == [("fusion-running", "n"), ("other-running", "n")]


def test_a_child_of_another_that_is_being_deleted_may_still_write(world: World) -> None:
    body = world.child("other")
    metadata = {**body["metadata"], "deletionTimestamp": "2026-01-01T12:00:00Z", "resourceVersion": world.version()}
    world.store.upsert(JOBS, {**body, "metadata": metadata})
    assert world.foreign("fusion") == [f"other-{SHARED}"]


def test_one_that_goes_on_without_sources_sees_every_live_child_for_its_artifacts_depend_on_the_losses(
    world: World,
) -> None:
    world.child("other", key="k")
    assert world.foreign("fusion") == []
    assert world.foreign("brave", sampling={"onSourceFailure": "Continue"}) == ["other-k"]


def test_a_spec_is_read_once_a_generation(world: World) -> None:
    obj = world.experiment("fusion")
    first = world.snapshots.experiment(obj).spec
    assert world.snapshots.experiment(obj).spec is first
    edited = world.snapshots.experiment(world.experiment("fusion", generation=2, training={"learningRate": 1e-6})).spec
    assert edited is not None
    assert edited.training.learning_rate == 1e-6
    invalid = world.snapshots.experiment(world.experiment("fusion", generation=3, sources=[]))
    assert invalid.spec is None
    assert invalid.spec_errors


def test_graphs_are_made_once_a_spec_and_differ_by_lost_sources() -> None:
    spec = parse_spec(raw_spec())
    assert build_graph(spec) is build_graph(spec)
    assert build_graph(parse_spec(raw_spec())) == build_graph(spec)
    assert build_graph(spec, frozenset({"yi"})) != build_graph(spec)


def test_a_freed_artifact_wakes_those_who_ask_for_it_and_nobody_else(world: World) -> None:
    for name in ("one", "two"):
        world.snapshots.experiment(world.experiment(name))
    world.snapshots.experiment(world.experiment("salted", reuse={"salt": "own"}))
    world.snapshots.experiment(world.experiment("elsewhere", namespace="prod"))
    world.snapshots.experiment(world.experiment("brave", sampling={"onSourceFailure": "Continue"}))
    freed = world.child("one")
    assert world.snapshots.waiters(freed) == {("ml", "one"), ("ml", "two"), ("ml", "brave")}
    world.snapshots.experiment(world.experiment("two", generation=2, reuse={"salt": "own"}))
    world.snapshots.forget(("ml", "one"))
    assert world.snapshots.waiters(freed) == {("ml", "brave")}
    world.snapshots.forget(("ml", "brave"))
    assert world.snapshots.waiters(freed) == frozenset()


def test_a_snapshot_takes_no_longer_because_of_other_experiments(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of the store is counted: time on a busy machine says nothing."""
    looked_at = 0
    labelled = ObjectStore.labelled

    def counted(store: ObjectStore, *arguments: Any) -> Any:
        nonlocal looked_at
        for obj in labelled(store, *arguments):
            looked_at += 1
            yield obj

    monkeypatch.setattr(ObjectStore, "labelled", counted)
    monkeypatch.setattr(ObjectStore, "items", lambda *_: pytest.fail("everything is searched"))
    world.child("fusion")
    experiment = world.snapshots.experiment(world.experiment("fusion"))
    world.snapshots.build(experiment)
    alone, looked_at = looked_at, 0
    for number in range(50):
        world.child(f"other-{number}", key=f"k{number}")
    world.snapshots.build(experiment)
    assert looked_at == alone
    assert alone > 0
    assert world.store.get(EXPERIMENTS, "ml", "fusion") is None
