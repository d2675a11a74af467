"""The operator's picture of the cluster."""

from __future__ import annotations

from typing import Any

from wrpo_operator.runtime.resources import JOBS
from wrpo_operator.runtime.store import ObjectStore


def job(name: str, version: int, uid: str = "u1", **rest: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": str(version)}, **rest}


def test_an_older_version_never_replaces_a_newer_one() -> None:
    store = ObjectStore()
    assert store.upsert(JOBS, job("a", 5, status={"active": 1}))
    assert not store.upsert(JOBS, job("a", 4, status={}))
    assert store.get(JOBS, "ns", "a") == job("a", 5, status={"active": 1})


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
    assert store.get(JOBS, "ns", "a") == job("a", 9, uid="new")


def test_a_list_removes_what_a_lost_watch_forgot_and_keeps_what_was_written_after_it() -> None:
    store = ObjectStore()
    store.upsert(JOBS, job("forgotten", 5, uid="f"))
    store.upsert(JOBS, job("just-applied", 30, uid="j"))
    changed = store.replace(JOBS, [job("new", 7, uid="n")], "20")
    assert sorted(item["metadata"]["name"] for item in changed) == ["forgotten", "new"]
    assert sorted(item["metadata"]["name"] for item in store.items(JOBS)) == ["just-applied", "new"]


def test_versions_that_are_no_numbers_are_taken_as_newer() -> None:
    store = ObjectStore()
    store.upsert(JOBS, {**job("a", 1), "metadata": {**job("a", 1)["metadata"], "resourceVersion": "abc"}})
    assert store.upsert(JOBS, job("a", 1, status={"active": 1}))
