"""Merge, JSON and strategic merge patches, as tables and as laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_devcluster.apiserver.fieldmanager.patch import PatchError, json_patch, merge_patch, strategic_merge
from wrpo_devcluster.apiserver.schema.schema import builtin

POD = builtin("io.k8s.api.core.v1.Pod")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("abc", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)

MERGES: dict[str, tuple[Any, Any, Any]] = {
    "null removes": ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
    "objects merge": ({"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}),
    "lists are replaced": ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    "an object replaces a scalar": ({"a": 1}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}),
}


@pytest.mark.parametrize(("target", "change", "expected"), MERGES.values(), ids=MERGES.keys())
def test_merge_patch(target: Any, change: Any, expected: Any) -> None:
    assert merge_patch(target, change) == expected


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_applied_twice_is_as_applied_once(target: Any, change: Any) -> None:
    once = merge_patch(target, change)
    assert merge_patch(once, change) == once


OPERATIONS: dict[str, tuple[Any, Any, Any]] = {
    "add to a list": ({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}], {"a": [1, 2]}),
    "insert": ({"a": [1]}, [{"op": "add", "path": "/a/0", "value": 0}], {"a": [0, 1]}),
    "escaped keys": ({"a/b": 1}, [{"op": "replace", "path": "/a~1b", "value": 2}], {"a/b": 2}),
    "move": ({"a": 1}, [{"op": "move", "from": "/a", "path": "/b"}], {"b": 1}),
    "an index from the end": ({"a": [1, 2, 3]}, [{"op": "remove", "path": "/a/-1"}], {"a": [1, 2]}),
    "add without a value": ({"a": 1}, [{"op": "add", "path": "/b"}], {"a": 1, "b": None}),
    "a float that is the integer": ({"a": 1.0}, [{"op": "test", "path": "/a", "value": 1}], {"a": 1.0}),
    "copy": ({"a": 1}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": 1, "b": 1}),
}


@pytest.mark.parametrize(("target", "change", "expected"), OPERATIONS.values(), ids=OPERATIONS.keys())
def test_json_patch(target: Any, change: Any, expected: Any) -> None:
    assert json_patch(target, change) == expected


REFUSED = {
    "a failed test": [{"op": "test", "path": "/a", "value": True}],
    "a missing path": [{"op": "remove", "path": "/b"}],
    "an index outside": [{"op": "add", "path": "/l/5", "value": 1}],
    "a path into a scalar": [{"op": "add", "path": "/a/b", "value": 1}],
    "an unknown operation": [{"op": "merge", "path": "/a", "value": 1}],
    "a pointer without a slash": [{"op": "remove", "path": "a"}],
    "an operation without a path": [{"op": "remove"}],
    "replacing nothing": [{"op": "replace", "path": "/b", "value": 1}],
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_json_patch_refuses_and_changes_nothing(change: Any) -> None:
    target = {"a": 1, "l": [1]}
    with pytest.raises(PatchError):
        json_patch(target, change)
    assert target == {"a": 1, "l": [1]}


def _pod(*containers: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"containers": list(containers)}}


STRATEGIC: dict[str, tuple[Any, Any, Any]] = {
    "containers merge by name": (
        _pod({"name": "a", "image": "1"}, {"name": "b", "image": "1"}),
        _pod({"name": "b", "image": "2"}),
        _pod({"name": "a", "image": "1"}, {"name": "b", "image": "2"}),
    ),
    "a directive deletes an item": (
        _pod({"name": "a"}, {"name": "b"}),
        _pod({"name": "a", "$patch": "delete"}),
        _pod({"name": "b"}),
    ),
    "a directive replaces the list": (
        _pod({"name": "a"}, {"name": "b"}),
        _pod({"name": "c"}, {"$patch": "replace"}),
        _pod({"name": "c"}),
    ),
    "finalizers are a set": (
        {"metadata": {"finalizers": ["a/b"]}},
        {"metadata": {"finalizers": ["c/d", "a/b"]}},
        {"metadata": {"finalizers": ["a/b", "c/d"]}},
    ),
    "values leave a set by directive": (
        {"metadata": {"finalizers": ["a/b", "c/d"]}},
        {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"]}},
        {"metadata": {"finalizers": ["c/d"]}},
    ),
    "lists without a merge key are replaced": (
        _pod({"name": "a", "args": ["x", "y"]}),
        _pod({"name": "a", "args": ["z"]}),
        _pod({"name": "a", "args": ["z"]}),
    ),
    "an order is followed": (
        _pod({"name": "a"}, {"name": "b"}),
        {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a"}]}},
        _pod({"name": "b"}, {"name": "a"}),
    ),
}


@pytest.mark.parametrize(("target", "change", "expected"), STRATEGIC.values(), ids=STRATEGIC.keys())
def test_strategic_merge_patch(target: Any, change: Any, expected: Any) -> None:
    assert strategic_merge(POD, target, change) == expected


CONTAINERS = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("abc")}, optional={"image": st.sampled_from("xyz")}),
    unique_by=lambda container: container["name"],
    max_size=3,
)


@given(CONTAINERS, CONTAINERS)
def test_a_strategic_patch_applied_twice_is_as_applied_once(before: Any, change: Any) -> None:
    once = strategic_merge(POD, _pod(*before), _pod(*change))
    assert strategic_merge(POD, once, _pod(*change)) == once
    assert {c["name"] for c in once["spec"]["containers"]} == {c["name"] for c in [*before, *change]}
