"""The operator's picture of the cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_operator.api import names
from wrpo_operator.api.backends import CHILD_KINDS, ChildKind
from wrpo_operator.runtime.observe import child_fact, pod_fact
from wrpo_operator.runtime.resources import CHILD_RESOURCES, EXPERIMENTS, JOBS, PODS
from wrpo_operator.runtime.store import ObjectStore
from wrpo_operator.runtime.trim import trim


def job(name: str, version: int, uid: str = "u1", **rest: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": str(version)}, **rest}


def seen(store: ObjectStore, name: str = "a") -> tuple[Any, ...] | None:
    """Return uid, version and status of what the store holds under a name."""
    found = store.get(JOBS, "ns", name)
    return None if found is None else (found["metadata"]["uid"], found["metadata"]["resourceVersion"], found["status"])


def test_an_older_version_never_replaces_a_newer_one() -> None:
    store = ObjectStore()
    assert store.upsert(JOBS, job("a", 5, status={"succeeded": 1}))
    assert not store.upsert(JOBS, job("a", 4, status={}))
    assert seen(store) == ("u1", "5", {"succeeded": 1})


def test_a_late_event_does_not_bring_back_a_deleted_object() -> None:
    store = ObjectStore()
    store.upsert(JOBS, job("a", 5))
    store.delete(JOBS, job("a", 6))
    assert not store.upsert(JOBS, job("a", 7))
    assert store.get(JOBS, "ns", "a") is None


def test_a_new_object_of_the_same_name_replaces_the_old_one_and_survives_its_late_deletion() -> None:
    store = ObjectStore()
    store.upsert(JOBS, job("a", 5, uid="old"))
    assert store.upsert(JOBS, job("a", 9, uid="new"))
    store.delete(JOBS, job("a", 6, uid="old"))
    assert seen(store) == ("new", "9", {})


def test_a_list_removes_what_a_lost_watch_forgot_and_keeps_what_was_written_after_it() -> None:
    store = ObjectStore()
    store.upsert(JOBS, job("forgotten", 5, uid="f"))
    store.upsert(JOBS, job("just-applied", 30, uid="j"))
    store.upsert(JOBS, job("listed", 7, uid="n"))
    gone = store.retain(JOBS, {("ns", "listed")}, "20")
    assert [item["metadata"]["name"] for item in gone] == ["forgotten"]
    assert sorted(store.keys(JOBS)) == [("ns", "just-applied"), ("ns", "listed")]


def test_versions_that_are_no_numbers_are_taken_as_newer() -> None:
    store = ObjectStore()
    store.upsert(JOBS, {**job("a", 1), "metadata": {**job("a", 1)["metadata"], "resourceVersion": "abc"}})
    assert store.upsert(JOBS, job("a", 1, status={"succeeded": 1}))


OWN = {names.LABEL_EXPERIMENT_UID: "e1", names.LABEL_ARTIFACT_KEY: "k1"}
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["upsert", "delete", "list", "drop"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["u1", "u2", "u3"]),
        st.sampled_from(["e1", "e2", ""]),
    ),
    max_size=30,
)


@given(CHANGES)
def test_the_index_always_tells_what_a_search_through_everything_would(
    changes: list[tuple[str, str, str, str]],
) -> None:
    store = ObjectStore()
    for version, (action, name, uid, owner) in enumerate(changes, start=1):
        labelled = job(name, version, uid=f"{uid}-{name}")
        labelled["metadata"]["labels"] = {names.LABEL_EXPERIMENT_UID: owner}
        match action:
            case "upsert":
                store.upsert(JOBS, labelled)
            case "delete":
                store.delete(JOBS, labelled)
            case "list":
                store.upsert(JOBS, labelled)
                store.retain(JOBS, {("ns", name)}, str(version))
            case _:
                store.drop(JOBS)
        for value in ("e1", "e2"):
            searched = [
                item
                for item in store.items(JOBS)
                if item["metadata"].get("labels", {}).get(names.LABEL_EXPERIMENT_UID) == value
            ]
            found = list(store.labelled(JOBS, names.LABEL_EXPERIMENT_UID, value, "ns"))
            assert sorted(found, key=str) == sorted(searched, key=str)
            assert list(store.labelled(JOBS, names.LABEL_EXPERIMENT_UID, value, "other")) == []


def test_a_version_that_says_nothing_new_is_kept_and_is_no_change() -> None:
    store = ObjectStore()
    store.upsert(JOBS, job("a", 1))
    before = store.revision
    assert store.upsert(JOBS, job("a", 2, status={"ready": 1}))
    assert store.revision == before
    assert store.upsert(JOBS, job("a", 3, status={"succeeded": 1}))
    assert store.revision > before


def whole_job() -> dict[str, Any]:
    labels = {
        **OWN,
        names.LABEL_EXPERIMENT: "fusion",
        names.LABEL_STAGE: "sample.a",
        names.LABEL_STAGE_HASH: "h",
        names.LABEL_ATTEMPT: "2",
        names.LABEL_QUEUE: "gpus",
    }
    container = {
        "name": "stage",
        "image": "org/sampler:1",
        "env": [{"name": f"V{i}", "value": "x" * 50} for i in range(40)],
    }
    metadata = {
        "namespace": "ns",
        "name": "fusion-sample-a",
        "uid": "u1",
        "resourceVersion": "5",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": labels,
        "annotations": {names.ANNOTATION_TEMPLATE_HASH: "t"},
        "managedFields": [{"manager": "wrpo-operator", "fieldsV1": {f"f:{i}": {} for i in range(100)}}],
    }
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit 65",
              "lastTransitionTime": "2026-01-01T00:01:00Z", "lastProbeTime": None}  # fmt: skip
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {"suspend": True, "template": {"spec": {"containers": [container]}}},
        "status": {"conditions": [failed], "startTime": "2026-01-01T00:00:10Z", "active": 0, "failed": 1},
    }


def whole_pod() -> dict[str, Any]:
    job_ = whole_job()
    state = {"terminated": {"exitCode": 65, "message": "it broke", "startedAt": "2026-01-01T00:00:20Z",
                            "finishedAt": "2026-01-01T00:00:30Z"}}  # fmt: skip
    waiting = {"name": "init", "state": {"running": {"startedAt": "2026-01-01T00:00:15Z"}}, "image": "x"}
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    index = {"batch.kubernetes.io/job-completion-index": "3"}
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "fusion-sample-a", "uid": "u1", "controller": True}
    metadata = {
        **job_["metadata"],
        "name": "fusion-sample-a-3",
        "uid": "p1",
        "annotations": index,
        "ownerReferences": [owner],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": "gpu-0", **job_["spec"]["template"]["spec"]},
        "status": {
            "phase": "Failed",
            "reason": "Evicted",
            "podIP": "10.0.0.1",
            "conditions": [unschedulable, {"type": "DisruptionTarget", "status": "True"}],
            "containerStatuses": [{"name": "stage", "state": state, "image": "org/sampler:1"}],
            "initContainerStatuses": [waiting],
        },
    }


def test_what_is_kept_says_the_same_as_the_whole_and_takes_a_fraction_of_it() -> None:
    job_, pod = whole_job(), whole_pod()
    assert child_fact(trim(JOBS, job_), [trim(PODS, pod)]) == child_fact(job_, [pod])
    assert pod_fact(trim(PODS, pod)) == pod_fact(pod)
    assert len(json.dumps(trim(JOBS, job_))) < len(json.dumps(job_)) / 4
    assert len(json.dumps(trim(PODS, pod))) < len(json.dumps(pod)) / 3


@pytest.mark.parametrize("kind", CHILD_KINDS.values(), ids=CHILD_KINDS)
@pytest.mark.parametrize("end", ["succeeded", "failed", ""])
def test_what_is_kept_of_a_child_says_the_same_as_the_whole_whatever_its_kind(kind: ChildKind, end: str) -> None:
    entry = {"type": getattr(kind, end, "Created"), "status": "True", "reason": "R", "message": "m",
             "lastTransitionTime": "2026-01-01T00:01:00Z", "observedGeneration": 1}  # fmt: skip
    times = {"startTime": "2026-01-01T00:00:10Z", "completionTime": "2026-01-01T00:01:00Z", "succeeded": 1}
    # Not every kind has these fields; those that its entry does not name are read of none.
    status = {"conditions": [entry], **{field: times[field] for field in kind.status_fields if field in times}}
    child = whole_job() | {"kind": kind.kind, "status": {**status, "restarts": 3}}
    child["spec"] = {**child["spec"], **kind.suspend_patch(suspend=True)["spec"]}
    resource = CHILD_RESOURCES[kind.kind]
    small = trim(resource, child)
    assert child_fact(small, []) == child_fact(child, [])
    assert small["status"].keys() == status.keys()
    assert list(small["spec"]) == [kind.suspend_path[0]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_what_is_kept_packed_is_equal_and_nobody_elses(value: Any) -> None:
    store = ObjectStore()
    experiment = job("a", 5, spec=value)
    store.upsert(EXPERIMENTS, experiment)
    first, second = store.get(EXPERIMENTS, "ns", "a"), store.get(EXPERIMENTS, "ns", "a")
    assert first == second == experiment
    assert first is not second
    assert first["metadata"] is not experiment["metadata"]
