"""CEL rules on updates: unchanged values are not evaluated again, and rules get only the variables that they read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from devcluster.api_rig import CRDS, WIDGET_CRD, WIDGETS, Rig, refusal, widget

from wrpo_devcluster.apiserver.schema.codec import copy_json
from wrpo_devcluster.apiserver.schema.schema import META, custom_root, structural
from wrpo_devcluster.apiserver.validation.cel_rules import check_rules

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
_POSITIVE = {"rule": "self > 0", "message": "must be positive"}
_GROWING = {"rule": "self >= oldSelf", "message": "may only grow"}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "x-kubernetes-validations": [_POSITIVE]},
        "size": {"type": "integer", "x-kubernetes-validations": [_POSITIVE, _GROWING]},
        "note": {"type": "string"},
        "atomic": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [_POSITIVE]}},
        "keyed": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "count": {"type": "integer", "x-kubernetes-validations": [_POSITIVE]},
                },
            },
        },
        "flag": {"type": "boolean", "x-kubernetes-validations": [{"rule": "self"}]},
    },
}
RATCHETING: dict[str, tuple[Any, Any, list[str]]] = {
    "a faulty value that stays is kept": ({"count": 0, "note": "a"}, {"count": 0, "note": "b"}, []),
    "a value that becomes faulty is refused": ({"count": 1}, {"count": 0}, ["count"]),
    "a faulty value that becomes another faulty one is refused": ({"count": 0}, {"count": -1}, ["count"]),
    "a faulty value that comes new is refused": ({}, {"count": 0}, ["count"]),
    "a transition rule is asked about a value that stays": ({"size": 0}, {"size": 0, "note": "a"}, []),
    "a transition rule refuses": ({"size": 5}, {"size": 4}, ["size"]),
    "items of an atomic list are judged again when it changes": ({"atomic": [0]}, {"atomic": [0, 1]}, ["atomic[0]"]),
    "items of an atomic list that stays are kept": ({"atomic": [0]}, {"atomic": [0], "note": "a"}, []),
    "items of a keyed list are matched by key": (
        {"keyed": [{"name": "a", "count": 0}]},
        {"keyed": [{"name": "b", "count": 0}, {"name": "a", "count": 0}]},
        ["keyed[0].count"],
    ),
    "false is not zero": ({"flag": 0}, {"flag": False}, ["flag"]),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), RATCHETING.values(), ids=RATCHETING.keys())
def test_rules_judge_what_changed(old: Any, new: Any, expected: list[str]) -> None:
    causes = check_rules(structural(_SCHEMA), new, old)
    assert [cause.field for cause in causes] == expected


def test_everything_is_judged_on_create() -> None:
    causes = check_rules(structural(_SCHEMA), {"count": 0, "atomic": [1, 0]})
    assert [cause.field for cause in causes] == ["count", "atomic[1]"]


SEEN: dict[str, tuple[str, bool]] = {
    "the name": ("self.metadata.name == 'w'", True),
    "no labels": ("has(self.metadata.labels)", False),
    "a field outside the metadata": ("self.spec.a == 1 && self.kind == 'Widget'", True),
}


@pytest.mark.parametrize(("rule", "holds"), SEEN.values(), ids=SEEN.keys())
def test_rules_see_of_metadata_only_names(rule: str, holds: bool) -> None:
    node = custom_root(
        {
            "type": "object",
            "x-kubernetes-validations": [{"rule": rule}],
            "properties": {"spec": {"type": "object", "properties": {"a": {"type": "integer"}}}},
        }
    )
    assert node.properties["metadata"].definition == f"{META}.ObjectMeta"
    obj = {"kind": "Widget", "metadata": {"name": "w", "labels": {"a": "b"}}, "spec": {"a": 1}}
    assert (check_rules(node, obj) == []) is holds


def test_a_message_may_show_the_old_value_of_a_plain_rule() -> None:
    rule = {"rule": "self.a > 0", "messageExpression": "'was ' + string(oldSelf.b)"}
    node = structural(
        {
            "type": "object",
            "x-kubernetes-validations": [rule],
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        }
    )
    causes = check_rules(node, {"a": 0, "b": 2}, {"a": 1, "b": 7})
    assert [cause.message for cause in causes] == ["Invalid value: was 7"]


def test_an_object_from_before_a_stricter_rule_can_still_be_changed(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(WIDGETS, widget("w", max=10), "ns")
        crd = await rig.client.get(CRDS, WIDGET_CRD["metadata"]["name"])
        stricter = copy_json(crd)
        schema = stricter["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        schema["properties"]["spec"]["x-kubernetes-validations"].append({"rule": "self.max > 50"})
        await rig.client.update(CRDS, stricter)
        changed = await rig.client.patch(WIDGETS, "w", "ns", {"metadata": {"labels": {"a": "b"}}})
        assert changed["metadata"]["labels"] == {"a": "b"}
        error = await refusal(rig.client.patch(WIDGETS, "w", "ns", {"spec": {"max": 20}}))
        assert [cause["field"] for cause in error.status["details"]["causes"]] == ["spec"]

    run(scenario)
