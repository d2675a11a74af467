"""Field sets: laws of their algebra, and of the queries of an unparsed fieldsV1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from wrpo_devcluster.apiserver.fieldmanager import managed
from wrpo_devcluster.apiserver.fieldmanager.managed import ManagerKey
from wrpo_devcluster.apiserver.schema.fieldset import FieldSet, names_all, names_any
from wrpo_devcluster.apiserver.schema.schema import DEDUCED

Path = tuple[str, ...]
PATHS = st.frozensets(
    st.lists(st.sampled_from(["f:a", "f:b", 'k:{"n":"x"}']), min_size=1, max_size=3).map(tuple), max_size=6
)
VALUES: Any = st.recursive(
    st.sampled_from([0, 1, True, "x"]),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


def build(paths: Iterable[Path]) -> FieldSet:
    found = FieldSet()
    for path in paths:
        at = found
        for element in path[:-1]:
            at = at.at(element)
        at.members.add(path[-1])
    return found


def paths_of(fields: FieldSet, prefix: Path = ()) -> frozenset[Path]:
    own = {(*prefix, element) for element in fields.members}
    return frozenset(own).union(*(paths_of(child, (*prefix, key)) for key, child in fields.children.items()))


@given(PATHS, PATHS)
def test_the_algebra_is_that_of_sets_of_paths(left: frozenset[Path], right: frozenset[Path]) -> None:
    a, b = build(left), build(right)
    assert paths_of(a.union(b)) == left | right
    assert paths_of(a.intersection(b)) == left & right
    assert paths_of(a.difference(b)) == left - right
    assert bool(a) == bool(left)


@given(PATHS, PATHS)
def test_the_algebra_changes_no_operand(left: frozenset[Path], right: frozenset[Path]) -> None:
    a, b = build(left), build(right)
    for result in (a.union(b), a.intersection(b), a.difference(b)):
        result.union(b).difference(a)
    assert (paths_of(a), paths_of(b)) == (left, right)


@given(PATHS)
def test_a_set_survives_being_written(paths: frozenset[Path]) -> None:
    assert paths_of(FieldSet.parse(build(paths).dump())) == paths


@given(PATHS, PATHS)
def test_a_written_set_answers_as_the_parsed_one(owned: frozenset[Path], asked: frozenset[Path]) -> None:
    written = build(owned).dump()
    assert names_any(written, build(asked)) == bool(owned & asked)
    assert names_all(written, build(asked)) == (asked <= owned)


@given(st.lists(st.tuples(st.sampled_from(["one", "two", "three"]), OBJECTS), max_size=6))
def test_a_field_belongs_to_the_last_manager_that_changed_it(writes: list[tuple[str, dict[str, Any]]]) -> None:
    live: dict[str, Any] = {"metadata": {}}
    for name, content in writes:
        new = {**content, "metadata": {}}
        key = ManagerKey(name, "Update", "v1", "")
        before = managed.load(live)
        managers = managed.record_update(DEDUCED, live, new, key, now="now")
        for other in before.keys() - {key}:
            left = paths_of(managers[other].fields) if other in managers else frozenset()
            own = paths_of(managers[key].fields) if key in managers else frozenset()
            assert left <= paths_of(before[other].fields)
            assert not left & own
        live = {**new, "metadata": {"managedFields": managed.dump(managers)}}
        assert managed.dump(managed.load(live, is_stored=False)) == live["metadata"]["managedFields"]


def test_versions_of_an_object_share_what_a_manager_still_owns() -> None:
    first, second = ManagerKey("first", "Update", "v1", ""), ManagerKey("second", "Update", "v1", "")
    old: dict[str, Any] = {"a": 1, "metadata": {}}
    managers = managed.record_update(DEDUCED, {"metadata": {}}, old, first, now="then")
    old["metadata"]["managedFields"] = managed.dump(managers)
    new = {**old, "b": 1}
    entries = managed.dump(managed.record_update(DEDUCED, old, new, second, now="now"))
    assert [entry["fieldsV1"] for entry in entries] == [{"f:b": {}}, {"f:a": {}}]
    assert entries[1]["fieldsV1"] is old["metadata"]["managedFields"][0]["fieldsV1"]
