"""Custom resources: pruning, defaults, CEL with transition rules, status isolation, life cycle of the CRD."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from devcluster.api_rig import ADMIN, CRDS, WIDGET_CRD, WIDGETS, Rig, refusal, widget
from support.patience import LIMIT_S

from wrpo_devcluster.apiserver.printers import jsonpath
from wrpo_devcluster.apiserver.schema.schema import structural
from wrpo_devcluster.apiserver.server import ApiServer
from wrpo_devcluster.apiserver.validation.cel_rules import check_rules

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
CEL: dict[str, tuple[dict[str, Any], Any, Any, list[tuple[str, str]]]] = {
    "a rule that holds": ({"rule": "self.a > 0"}, {"a": 1}, None, []),
    "a rule that fails": ({"rule": "self.a > 0", "message": "no"}, {"a": 0}, None, [("FieldValueInvalid", "")]),
    "a transition rule is skipped on create": ({"rule": "self.a == oldSelf.a"}, {"a": 1}, None, []),
    "a transition rule on update": (
        {"rule": "self.a == oldSelf.a", "reason": "FieldValueForbidden", "fieldPath": ".a"},
        {"a": 1},
        {"a": 2},
        [("FieldValueForbidden", "a")],
    ),
    "a missing field fails the rule": ({"rule": "self.b == 'x'"}, {"a": 1}, None, [("FieldValueInvalid", "")]),
    "names that are no identifiers": ({"rule": "self.with__dash__dash == 1"}, {"with-dash": 1}, None, []),
    "string helpers": ({"rule": "self.b.split(',').size() == 2 && 'X,Y' == self.b"}, {"b": "X,Y"}, None, []),
    "numbers are doubles": ({"rule": "self.n < 1.5"}, {"n": 1}, None, []),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "value", "old", "expected"), CEL.values(), ids=CEL.keys())
def test_cel_rules(rule: Any, value: Any, old: Any, expected: Any) -> None:
    node = structural(
        {
            "type": "object",
            "x-kubernetes-validations": [rule],
            "properties": {
                "a": {"type": "integer"},
                "b": {"type": "string"},
                "n": {"type": "number"},
                "with-dash": {"type": "integer"},
            },
        }
    )
    causes = check_rules(node, value) if old is None else check_rules(node, value, old)
    assert [(cause.reason, cause.field.removeprefix("<nil>")) for cause in causes] == expected


PATHS: dict[str, tuple[str, Any]] = {
    "a field": (".a.b", 1),
    "an index": (".l[1].n", "y"),
    "a filter": ('.l[?(@.n=="y")].v', 2),
    "an escaped dot": (r".labels.app\.io/name", "z"),
    "nothing": (".none.b", None),
}


@pytest.mark.parametrize(("path", "expected"), PATHS.values(), ids=PATHS.keys())
def test_printer_column_paths(path: str, expected: Any) -> None:
    obj = {"a": {"b": 1}, "l": [{"n": "x", "v": 1}, {"n": "y", "v": 2}], "labels": {"app.io/name": "z"}}
    assert jsonpath.first(path, obj) == expected


def test_defaults_apply_in_lists_and_unknown_fields_go(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        found = await rig.client.create(WIDGETS, widget("w", parts=[{"name": "a", "x": 1}], typo=2), "ns")
        assert found["spec"] == {"min": 0, "max": 10, "parts": [{"name": "a", "count": 1}]}

    run(scenario)


def test_rules_see_the_old_object_on_update_only(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(WIDGETS, widget("w", max=10), "ns")
        error = await refusal(rig.client.patch(WIDGETS, "w", "ns", {"spec": {"max": 5}}))
        assert error.status["details"]["causes"] == [
            {"reason": "FieldValueInvalid", "message": "Invalid value: max may only grow", "field": "spec"}
        ]
        error = await refusal(rig.client.create(WIDGETS, widget("v", min=11), "ns"))
        assert "min must not exceed max" in str(error)

    run(scenario)


def test_status_and_spec_do_not_touch_each_other(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(WIDGETS, {**widget("w"), "status": {"x": 1}}, "ns")
        found = await rig.client.patch(
            WIDGETS, "w", "ns", {"spec": {"max": 99}, "status": {"y": 2}}, subresource="status"
        )
        assert (found["spec"]["max"], found["status"], found["metadata"]["generation"]) == (10, {"y": 2}, 1)
        found = await rig.client.patch(WIDGETS, "w", "ns", {"spec": {"max": 11}, "status": {"z": 3}})
        assert (found["spec"]["max"], found["status"], found["metadata"]["generation"]) == (11, {"y": 2}, 2)

    run(scenario)


def test_an_update_that_changes_nothing_keeps_the_version(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        before = await rig.client.create(WIDGETS, widget("w"), "ns")
        after = await rig.client.patch(WIDGETS, "w", "ns", {"spec": {"max": 10}})
        assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]

    run(scenario)


def test_a_stale_version_is_a_conflict(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        old = await rig.client.create(WIDGETS, widget("w"), "ns")
        await rig.client.patch(WIDGETS, "w", "ns", {"spec": {"max": 11}})
        error = await refusal(rig.client.update(WIDGETS, old))
        assert (error.code, error.reason) == (409, "Conflict")

    run(scenario)


def test_a_deleted_crd_takes_its_objects_along_and_may_come_back(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(WIDGETS, widget("w"), "ns")
        await rig.client.delete(CRDS, "widgets.test.example")
        async with asyncio.timeout(LIMIT_S):
            while rig.server.registry.find("test.example", "v1", "widgets") is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        status, body = await rig.request("GET", "/apis/test.example/v1/namespaces/ns/widgets")
        assert (status, body) == (404, "404 page not found\n")
        await rig.client.create(CRDS, WIDGET_CRD)
        assert await rig.client.list(WIDGETS) == []

    run(scenario)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a rule that does not parse": (
        {"type": "object", "x-kubernetes-validations": [{"rule": "self.a =="}]},
        "x-kubernetes-validations[0].rule",
    ),
    "a list map without its key": (
        {
            "type": "array",
            "items": {"type": "object"},
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["k"],
        },
        "x-kubernetes-list-map-keys",
    ),
    "a pattern that is none": ({"type": "string", "pattern": "("}, "pattern"),
    "an untyped field": ({"description": "x"}, "type"),
    "a default that breaks the schema": ({"type": "integer", "default": "x"}, "default"),
}


@pytest.mark.parametrize(("field", "at"), BROKEN.values(), ids=BROKEN.keys())
def test_a_faulty_schema_is_refused_with_its_place(run: Run, field: dict[str, Any], at: str) -> None:
    body = {
        **WIDGET_CRD,
        "metadata": {"name": "gadgets.test.example"},
        "spec": {
            **WIDGET_CRD["spec"],
            "names": {"plural": "gadgets", "kind": "Gadget"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"f": field}}},
                }
            ],
        },
    }

    async def scenario(rig: Rig) -> None:
        error = await refusal(rig.client.create(CRDS, body))
        fields = [cause["field"] for cause in error.status["details"]["causes"]]
        assert fields[0].endswith(f"properties[f].{at}")

    run(scenario)


@pytest.mark.parametrize(("before", "after"), [(0, {}), ([1], {}), ({"b": 1}, []), ({}, 0), ("x", [])])
def test_free_content_may_become_another_type(run: Run, before: Any, after: Any) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(WIDGETS, widget("w"), "ns")
        await rig.client.patch(WIDGETS, "w", "ns", {"status": {"a": before}}, subresource="status")
        json_patch = [{"op": "replace", "path": "/status/a", "value": after}]
        found = await rig.client.patch(WIDGETS, "w", "ns", json_patch, kind="json", subresource="status")
        assert found["status"] == {"a": after}

    run(scenario)


def test_a_crd_can_have_its_status_late_even_over_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = ApiServer(tmp_path / "state", admin_token=ADMIN, crd_status_delay_s=3600)
        client = server.client("system:tests")
        made = await client.create(CRDS, WIDGET_CRD)
        assert made["status"]["conditions"] is None
        assert (await refusal(client.list(WIDGETS, "default"))).code == 404
        await server.close()

        server = ApiServer(tmp_path / "state", admin_token=ADMIN)
        client = server.client("system:tests")
        found = await client.get(CRDS, "widgets.test.example")
        assert [entry["type"] for entry in found["status"]["conditions"]] == ["NamesAccepted", "Established"]
        assert await client.list(WIDGETS, "default") == []
        await server.close()

    asyncio.run(scenario())
