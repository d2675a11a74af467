"""Which changes are looked at, and how soon."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_operator.runtime.changes import LATER_S, NOW, Changes
from wrpo_operator.runtime.resources import EXPERIMENTS, JOBS, PODS, JsonObject
from wrpo_operator.runtime.store import ObjectStore

LABELS = {
    "wrpo.ai/experiment": "fusion",
    "wrpo.ai/experiment-uid": "e-1",
    "wrpo.ai/stage": "prepare",
    "wrpo.ai/stage-hash": "0123456789abcdef",
    "wrpo.ai/artifact-key": "fedcba9876543210",
    "wrpo.ai/attempt": "1",
}


class Watched:
    """A store that takes changes as the informer does, and says how urgent each is."""

    def __init__(self) -> None:
        self.store = ObjectStore()
        self.changes = Changes(self.store)
        self._version = 0

    def job(self, *conditions: str, spec: Any = None, **status: Any) -> float | None:
        entries = [{"type": kind, "status": "True"} for kind in conditions]
        return self._put(JOBS, "job", LABELS, spec or {}, {"conditions": entries, **status})

    def pod(self, phase: str, *, node: str | None = "n", attempt: str = "1", **status: Any) -> float | None:
        labels = {**LABELS, "wrpo.ai/attempt": attempt}
        return self._put(PODS, "pod", labels, {"nodeName": node}, {"phase": phase, **status})

    def recreated(self, uid: str) -> float | None:
        """Show a job of the same name with another uid; nothing was heard of the end of the one before."""
        return self._put(JOBS, "job", LABELS, {}, {"conditions": []}, uid=uid)

    def gone(self, resource: Any, name: str) -> float | None:
        obj = self.store.get(resource, "ns", name)
        assert obj is not None
        self.store.delete(resource, obj)
        return self.changes.urgency_s(resource, obj)

    def _put(self, resource: Any, name: str, labels: Any, spec: Any, status: Any, *, uid: str = "") -> float | None:
        self._version += 1
        metadata = {"namespace": "ns", "name": name, "uid": uid or name, "labels": labels}
        obj: JsonObject = {
            "kind": resource.kind,
            "metadata": {**metadata, "resourceVersion": str(self._version)},
            "spec": spec,
            "status": status,
        }
        assert self.store.upsert(resource, obj)
        return self.changes.urgency_s(resource, obj)


def test_the_way_of_a_job_and_its_pod_is_looked_at_now_only_where_it_ends() -> None:
    watched = Watched()
    assert watched.job() == LATER_S
    assert watched.job(startTime="2026-01-01T00:00:00Z", active=1) is None
    assert watched.pod("Pending", node=None) == LATER_S
    assert watched.pod("Pending") == LATER_S
    creating = [{"name": "stage", "state": {"waiting": {"reason": "ContainerCreating"}}}]
    assert watched.pod("Pending", containerStatuses=creating) is None
    assert watched.pod("Running") == LATER_S
    assert watched.job(active=1, ready=1) is None
    assert watched.pod("Succeeded") == LATER_S
    assert watched.job(uncountedTerminatedPods={"succeeded": ["pod"]}) is None
    assert watched.job("SuccessCriteriaMet") == LATER_S
    assert watched.job("SuccessCriteriaMet", "Complete") == NOW
    assert watched.job("SuccessCriteriaMet", "Complete", terminating=0) is None


@pytest.mark.parametrize(
    "status",
    [
        {"containerStatuses": [{"name": "stage", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
        {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}]},
    ],
)
def test_a_pod_that_says_why_it_waits_is_heard_at_once(status: Any) -> None:
    watched = Watched()
    watched.job()
    assert watched.pod("Pending", **status) == NOW
    assert watched.pod("Pending", **status) is None


def test_the_end_of_a_pod_whose_child_has_ended_is_waited_for_by_the_next_attempt() -> None:
    watched = Watched()
    watched.job("Failed")
    watched.pod("Running")
    assert watched.pod("Failed") == NOW
    assert watched.gone(PODS, "pod") == NOW


def test_the_end_of_a_pod_of_another_attempt_is_not_covered_by_a_live_child() -> None:
    watched = Watched()
    watched.job()
    assert watched.pod("Failed", attempt="2") == NOW


def test_the_end_of_a_pod_without_a_child_is_looked_at_now() -> None:
    watched = Watched()
    assert watched.pod("Running") == LATER_S
    assert watched.gone(PODS, "pod") == NOW


def test_what_is_deleted_suspended_or_failed_is_looked_at_now() -> None:
    watched = Watched()
    assert watched.job(spec={"suspend": True}) == NOW
    assert watched.job("FailureTarget", "Failed") == NOW
    assert watched.gone(JOBS, "job") == NOW


def test_every_change_of_an_experiment_is_looked_at_now() -> None:
    watched = Watched()
    assert watched.changes.urgency_s(EXPERIMENTS, {"metadata": {"name": "fusion", "namespace": "ns"}}) == NOW


def test_what_is_recreated_again_and_again_leaves_nothing_behind() -> None:
    watched = Watched()
    for number in range(100):
        assert watched.recreated(f"uid-{number}") == LATER_S
    assert len(watched.changes._seen) == 1
    watched.gone(JOBS, "job")
    assert watched.changes._seen == {}


def test_the_late_end_of_a_replaced_job_is_looked_at_and_does_not_hide_what_its_successor_showed() -> None:
    watched = Watched()
    watched.recreated("old")
    old = watched.store.get(JOBS, "ns", "job")
    assert old is not None
    assert watched.recreated("new") == LATER_S
    watched.store.delete(JOBS, old)
    assert watched.changes.urgency_s(JOBS, old) == NOW
    assert watched.recreated("new") is None


def test_what_vanished_with_its_crd_is_forgotten() -> None:
    watched = Watched()
    watched.job()
    watched.pod("Running")
    watched.store.drop(JOBS)
    watched.changes.prune()
    assert [at[0] for at in watched.changes._seen] == [PODS]
    assert watched.pod("Running") is None
