"""Server-side apply: ownership, conflicts, removal of fields that an applier no longer sets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from devcluster.api_rig import WIDGETS, Rig, refusal, widget
from hypothesis import given
from hypothesis import strategies as st

from wrpo_devcluster.apiserver.fieldmanager import managed
from wrpo_devcluster.apiserver.fieldmanager.managed import AppliedConfiguration, ManagerKey
from wrpo_devcluster.apiserver.schema.fieldset import FieldSet
from wrpo_devcluster.apiserver.schema.schema import custom_root
from wrpo_devcluster.client import CONFIG_MAPS

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
NODE = custom_root(
    {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer"},
                    "b": {"type": "string"},
                    "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "parts": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                        "items": {
                            "type": "object",
                            "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
                        },
                    },
                },
            }
        },
    }
)


def applied(live: dict[str, Any], spec: dict[str, Any], manager: str = "one", *, force: bool = True) -> dict[str, Any]:
    given = AppliedConfiguration({"spec": spec}, ManagerKey(manager, "Apply", "", ""), api_version="v1", force=force)
    merged, managers = managed.apply(NODE, live, given, "2026-01-01T00:00:00Z")
    return {**merged, "metadata": {"managedFields": managed.dump(managers)}}


SPECS = st.fixed_dictionaries(
    {},
    optional={
        "a": st.integers(0, 3),
        "b": st.sampled_from("xy"),
        "tags": st.lists(st.sampled_from("pqr"), unique=True, max_size=3),
        "labels": st.dictionaries(st.sampled_from("kl"), st.sampled_from("vw"), max_size=2),
        "parts": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from("mno")}, optional={"count": st.integers(0, 2)}),
            unique_by=lambda part: part["name"],
            max_size=3,
        ),
    },
)


@given(SPECS, SPECS)
def test_applying_twice_is_as_applying_once(first: dict[str, Any], second: dict[str, Any]) -> None:
    live = applied({}, first, "other")
    once = applied(live, second)
    assert applied(once, second) == once


@given(SPECS, SPECS)
def test_what_a_sole_applier_sets_is_what_is_there(first: dict[str, Any], second: dict[str, Any]) -> None:
    found = applied(applied({}, first), second).get("spec") or {}
    assert {key: value for key, value in found.items() if value not in (None, [], {})} == {
        key: value for key, value in second.items() if value not in ([], {})
    } or sorted(map(str, found)) == sorted(map(str, second))


@given(SPECS, SPECS)
def test_what_another_applier_owns_survives(first: dict[str, Any], second: dict[str, Any]) -> None:
    """One applies, two applies, two applies nothing: every value one set and two did not is still there."""
    both = applied(applied({}, first, "one"), second, "two")
    alone = applied(both, {}, "two")["spec"] or {}
    for key in first.keys() - second.keys():
        assert alone[key] == first[key]


@given(SPECS)
def test_field_sets_survive_their_written_form(spec: dict[str, Any]) -> None:
    fields = applied({}, spec)["metadata"]["managedFields"]
    for entry in fields:
        assert FieldSet.parse(entry["fieldsV1"]).dump() == entry["fieldsV1"]


def test_a_conflict_names_field_and_owner_and_force_takes_it(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        path = "/apis/test.example/v1/namespaces/ns/widgets/w"
        media = "application/apply-patch+yaml"
        status, _ = await rig.request("PATCH", f"{path}?fieldManager=one", widget("w", max=20), content=media)
        assert status == 201
        status, body = await rig.request("PATCH", f"{path}?fieldManager=two", widget("w", max=30), content=media)
        assert (status, body["reason"]) == (409, "Conflict")
        assert body["details"]["causes"] == [
            {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".spec.max"}
        ]
        status, body = await rig.request(
            "PATCH", f"{path}?fieldManager=two&force=true", widget("w", max=30), content=media
        )
        assert (status, body["spec"]["max"]) == (200, 30)
        assert [entry["manager"] for entry in body["metadata"]["managedFields"]] == ["two"]

    run(scenario)


def test_an_applier_that_drops_a_list_item_removes_only_its_own(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        one, two = rig.server.client("one"), rig.server.client("two")
        await one.patch(WIDGETS, "w", "ns", widget("w", parts=[{"name": "a"}, {"name": "b"}]), kind="apply")
        await two.patch(WIDGETS, "w", "ns", widget("w", parts=[{"name": "b"}, {"name": "c"}]), kind="apply")
        found = await one.patch(WIDGETS, "w", "ns", widget("w", parts=[{"name": "a"}]), kind="apply")
        assert [part["name"] for part in found["spec"]["parts"]] == ["a", "b", "c"]
        found = await two.patch(WIDGETS, "w", "ns", widget("w"), kind="apply")
        assert found["spec"]["parts"] == [{"name": "a", "count": 1}]

    run(scenario)


def test_an_update_takes_ownership_from_an_applier(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "1", "l": "1"}}
        await rig.server.client("one").patch(CONFIG_MAPS, "c", "ns", body, kind="apply")
        found = await rig.server.client("two").patch(CONFIG_MAPS, "c", "ns", {"data": {"k": "2"}})
        owned = {e["manager"]: e["fieldsV1"] for e in found["metadata"]["managedFields"]}
        assert owned == {"one": {"f:data": {"f:l": {}}}, "two": {"f:data": {"f:k": {}}}}
        error = await refusal(rig.server.client("one").patch(CONFIG_MAPS, "c", "ns", body, kind="apply"))
        assert (error.code, error.reason) == (409, "Conflict")

    run(scenario)


def test_an_unknown_field_in_an_applied_body_is_an_error(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        error = await refusal(rig.client.patch(WIDGETS, "w", "ns", widget("w", typo=1), kind="apply"))
        assert error.code == 500
        assert ".spec.typo: field not declared in schema" in str(error)

    run(scenario)
