"""Experiments of a sweep take over each other's finished stages, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from support.builders import NOON, make_experiment, raw_spec
from support.fault_cluster import NAMESPACE, Server, drive

from wrpo_operator.api import names
from wrpo_operator.api.status import Attempt, AttemptState, StageState, StageStatus
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import Snapshot
from wrpo_operator.plan.planner import plan
from wrpo_operator.plan.sharing import with_shared
from wrpo_operator.runtime.resources import CLAIMS, EXPERIMENTS, SWEEPS, JsonObject
from wrpo_operator.runtime.siblings import Siblings
from wrpo_operator.runtime.store import ObjectStore

SHORT: dict[str, Any] = {
    "sources": [{"name": "a", "model": "org/a"}],
    "training": {"objective": "SFTOnly"},
    "evaluation": {"enabled": False},
    "report": {"enabled": False},
}
STAGE = {"name": "prepare", "hash": "0" * 16, "state": "Succeeded", "artifact": "prepare/0", "metrics": {"rows": 7}}


def labelled(name: str, sweep: str = "sweep-uid", version: int = 1, **changes: Any) -> JsonObject:
    meta = {"name": name, "namespace": NAMESPACE, "uid": name, "resourceVersion": str(version)}
    labels = {names.LABEL_SWEEP_UID: sweep} if sweep else {}
    return {
        "metadata": {**meta, "labels": labels},
        "spec": {"storage": {"volume": {"claimName": "wrpo"}}},
        "status": {"stages": [STAGE]},
        **changes,
    }


def finished(*objects: JsonObject, asking: JsonObject | None = None) -> dict[tuple[str, str], StageStatus]:
    store = ObjectStore()
    asking = asking or labelled("b", status={})
    for obj in (*objects, asking):
        store.upsert(EXPERIMENTS, obj)
    return Siblings(store).finished(asking, [("prepare", "0" * 16), ("train", "1" * 16)])


def test_a_record_of_a_sibling_counts_as_an_existing_artifact_without_attempts() -> None:
    ((place, record),) = finished(labelled("a")).items()
    assert place == ("prepare", "0" * 16)
    assert (record.state, record.cached, record.artifact) == (StageState.SUCCEEDED, True, "prepare/0")
    assert (record.metrics, record.attempts, record.gpu_seconds) == ({"rows": 7.0}, (), None)


def test_experiments_of_other_sweeps_other_storages_and_no_sweep_share_nothing() -> None:
    elsewhere = {"storage": {"volume": {"claimName": "other"}}}
    assert finished(labelled("a", sweep="another")) == {}
    assert finished(labelled("a", spec=elsewhere)) == {}
    assert finished(labelled("a", sweep=""), asking=labelled("b", sweep="", status={})) == {}


def test_changes_and_deletions_of_siblings_are_followed() -> None:
    store = ObjectStore()
    asking = labelled("b", status={})
    store.upsert(EXPERIMENTS, asking)
    siblings, wanted = Siblings(store), [("prepare", "0" * 16)]
    assert siblings.finished(asking, wanted) == {}
    store.upsert(EXPERIMENTS, labelled("a", version=2))
    assert siblings.finished(asking, wanted)
    store.upsert(EXPERIMENTS, labelled("a", version=3, status={"stages": [{**STAGE, "state": "Running"}]}))
    assert siblings.finished(asking, wanted) == {}
    store.upsert(EXPERIMENTS, labelled("a", version=4))
    store.delete(EXPERIMENTS, labelled("a", version=5))
    assert siblings.finished(asking, wanted) == {}


def test_a_sibling_with_an_invalid_spec_records_nothing_and_is_not_awaited() -> None:
    store = ObjectStore()
    asking = labelled("b", status={})
    for obj in (asking, labelled("a"), labelled("wrong", status={"phase": "Invalid"})):
        store.upsert(EXPERIMENTS, obj)
    siblings = Siblings(store)
    assert [siblings.will_record(asking, uid) for uid in ("a", "wrong", "stranger")] == [True, False, False]


def test_what_is_taken_over_is_not_started_and_its_users_are() -> None:
    experiment = make_experiment(**SHORT)
    assert experiment.spec is not None
    nodes = {str(node.id): node for node in build_graph(experiment.spec)}
    record = StageStatus(name="prepare", hash=nodes["prepare"].hash, state=StageState.SUCCEEDED, cached=True)
    shared = {("prepare", record.hash): record}
    todo = plan(Snapshot(experiment, shared=shared), NOON)
    assert [str(start.node.id) for start in todo.apply] == ["sample/a"]
    assert todo.status is not None
    stage = todo.status.stage_named("prepare")
    assert stage is not None
    assert (stage.state, stage.cached, stage.artifact) == (StageState.SUCCEEDED, True, f"prepare/{record.hash}")


def test_a_stage_that_the_experiment_has_attempted_is_not_taken_over() -> None:
    experiment = make_experiment(**SHORT)
    assert experiment.spec is not None
    graph = build_graph(experiment.spec)
    done = StageStatus(name="prepare", hash=graph[0].hash, state=StageState.SUCCEEDED)
    attempt = Attempt(number=1, child="c", state=AttemptState.RUNNING)
    own = done.model_copy(update={"state": StageState.RUNNING, "attempts": (attempt,)})
    experiment = replace(experiment, status=experiment.status.model_copy(update={"stages": (own,)}))
    snapshot = Snapshot(experiment, shared={("prepare", done.hash): done})
    assert with_shared(snapshot, graph) is experiment


def test_variants_with_another_storage_compute_everything_themselves() -> None:
    server = Server()
    server.put(CLAIMS, {"metadata": {"name": "other", "namespace": NAMESPACE}, "status": {"phase": "Bound"}})
    variants = [{"name": "a"}, {"name": "b", "set": {"storage": {"volume": {"claimName": "other"}}}}]
    spec = {"experiment": raw_spec(**SHORT), "variants": variants}
    server.put(SWEEPS, {"metadata": {"name": "s", "namespace": NAMESPACE}, "spec": spec})

    def ended() -> bool:
        return (server.objects[SWEEPS, NAMESPACE, "s"].get("status") or {}).get("phase") == "Succeeded"

    asyncio.run(drive(server, {}, finished=ended))
    assert len(server.runs) % 2 == 0
    assert set(server.runs.values()) == {1}
    assert sum(name.startswith("s-a-") for name in server.made) == sum(name.startswith("s-b-") for name in server.made)
