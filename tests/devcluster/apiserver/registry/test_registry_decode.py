"""Decoding of replacements of stored objects: shared parts are kept, and the result is the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from devcluster.api_rig import WIDGETS, Rig, pod, refusal, widget

from wrpo_devcluster.apiserver.apis.request import ADMIN, Context
from wrpo_devcluster.apiserver.fieldmanager.patch import merge_patch
from wrpo_devcluster.apiserver.registry.decode import decode
from wrpo_devcluster.apiserver.schema import serializer
from wrpo_devcluster.apiserver.schema.codec import copy_json
from wrpo_devcluster.apiserver.schema.kinds import Kind, builtin_kinds, custom_kinds
from wrpo_devcluster.client import CONFIG_MAPS, PODS

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
_CRD: dict[str, Any] = {
    "spec": {
        "group": "test.example",
        "scope": "Namespaced",
        "names": {"kind": "Widget", "plural": "widgets"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "properties": {"max": {"type": "integer", "default": 10}}},
                            "status": {"type": "object", "properties": {"phase": {"type": "string", "default": "New"}}},
                        },
                    }
                },
            }
        ],
    },
    "status": {},
}
_TEMPLATE = {"spec": {"containers": [{"name": "c", "image": "a"}], "restartPolicy": "Never"}}
BODIES: dict[str, dict[str, Any]] = {
    "Pod": {"spec": _TEMPLATE["spec"], "status": {"phase": "Pending"}},
    "Job": {"spec": {"template": _TEMPLATE}, "status": {}},
    "Service": {"spec": {"ports": [{"port": 80}]}},
    "Namespace": {"spec": {"finalizers": ["kubernetes"]}},
    "ConfigMap": {"data": {"a": "b"}},
    "ReplicaSet": {"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": _TEMPLATE}},
    "PersistentVolumeClaim": {"spec": {"accessModes": ["ReadWriteOnce"]}},
    "Widget": {"spec": {"max": 3}, "status": {"phase": "Old"}},
}
PATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "a label": ({"metadata": {"labels": {"a": "b"}}}, ""),
    "nothing": ({}, ""),
    "the status": ({"status": {"phase": "Running", "unknown": 1}}, "status"),
    "a status that goes": ({"status": None}, "status"),
    "a part of the spec": ({"spec": {"unknown": 1, "parallelism": 2, "clusterIP": None}}, ""),
}


def _kind(name: str) -> Kind:
    return next(kind for kind in (*builtin_kinds(), *custom_kinds(_CRD)) if kind.kind == name)


def _context() -> Context:
    return Context(ADMIN, "tests")


def _stored(kind: Kind) -> dict[str, Any]:
    meta = {"name": "x", "uid": "u", "labels": {"c": "d"}, "managedFields": [{"manager": "m", "fieldsV1": {"f:a": {}}}]}
    return decode(
        kind, {"metadata": meta, "kind": kind.kind, "apiVersion": kind.api_version, **BODIES[kind.kind]}, _context()
    )


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(("patch", "subresource"), PATCHES.values(), ids=PATCHES.keys())
def test_sharing_changes_neither_the_result_nor_the_stored_object(name: str, patch: Any, subresource: str) -> None:
    kind = _kind(name)
    stored = _stored(kind)
    before = copy_json(stored)
    body = merge_patch(stored, patch)
    plain, sharing = _context(), _context()
    expected = decode(kind, copy_json(body), plain)
    assert decode(kind, body, sharing, stored=stored, subresource=subresource) == expected
    assert sharing.warnings == plain.warnings
    assert stored == before


def test_a_status_patch_keeps_the_spec_as_it_is() -> None:
    kind = _kind("Pod")
    stored = _stored(kind)
    found = decode(kind, merge_patch(stored, {"status": {"phase": "Running"}}), _context(), stored=stored)
    assert found["spec"] is stored["spec"]
    assert found["metadata"] is not stored["metadata"]
    assert list(found) == ["kind", "apiVersion", "metadata", "spec", "status"]


def test_a_custom_spec_is_decoded_again_where_it_is_written() -> None:
    """The schema may have changed since the object was stored: removed fields are pruned, new ones defaulted."""
    kind = _kind("Widget")
    stored = {**_stored(kind), "spec": {"gone": 1}}
    found = decode(kind, merge_patch(stored, {"metadata": {"labels": {"a": "b"}}}), _context(), stored=stored)
    assert found["spec"] == {"max": 10}
    assert stored["spec"] == {"gone": 1}


def test_unchanged_parts_are_the_same_objects_from_version_to_version(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(PODS, pod("p"), "ns")
        before = rig.server.store.get("/pods", "ns", "p")
        await rig.client.patch(PODS, "p", "ns", {"metadata": {"labels": {"a": "b"}}})
        after = rig.server.store.get("/pods", "ns", "p")
        assert before is not None
        assert after is not None
        assert after.obj["spec"] is before.obj["spec"]
        assert before.obj["metadata"].get("labels") is None

    run(scenario)


def test_what_a_patch_changes_is_still_validated(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(
            CONFIG_MAPS, {"metadata": {"name": "c", "labels": {"a": "b"}}, "data": {"k": "v"}}, "ns"
        )
        await rig.client.create(WIDGETS, widget("w", max=10), "ns")
        faulty = {
            "a label": (CONFIG_MAPS, "c", {"metadata": {"labels": {"a": "-"}}}, "metadata.labels"),
            "a finalizer": (CONFIG_MAPS, "c", {"metadata": {"finalizers": ["x"]}}, "metadata.finalizers"),
            "an annotation": (CONFIG_MAPS, "c", {"metadata": {"annotations": {"-": ""}}}, "metadata.annotations"),
            "a key": (CONFIG_MAPS, "c", {"data": {"a b": ""}}, "data[a b]"),
            "a type": (WIDGETS, "w", {"spec": {"max": "x"}}, "spec.max"),
        }
        for resource, name, patch, field in faulty.values():
            error = await refusal(rig.client.patch(resource, name, "ns", patch))
            assert error.status["details"]["causes"][0]["field"] == field

    run(scenario)


NUMBERS = {
    b"[9223372036854775807]": [2**63 - 1],
    b"[-9223372036854775808]": [-(2**63)],
    b"[9223372036854775808]": [2.0**63],
    b"[1e308,-0]": [1e308, 0],
    rb'["\ud83e\udd99"]': ["\U0001f999"],
    rb'["\ud83e"]': ["\ufffd"],
    rb'["\\ud83e"]': ["\\ud83e"],
}


@pytest.mark.parametrize(("text", "expected"), NUMBERS.items())
def test_json_is_read_as_go_reads_it(text: bytes, expected: list[Any]) -> None:
    found = serializer.parse_json(text)
    assert found == expected
    assert [type(item) for item in found] == [type(item) for item in expected]


@pytest.mark.parametrize("text", [b"[1e400]", b"[NaN]", b"[-Infinity]", b"[" + b"9" * 400 + b"]"])
def test_numbers_that_go_refuses_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"cannot unmarshal number|looking for beginning of value"):
        serializer.parse_json(text)


def test_an_applied_body_with_escapes_of_surrogates_is_refused_as_by_go_yaml() -> None:
    with pytest.raises(ValueError, match="yaml: found invalid Unicode character escape code"):
        serializer.parse_yaml(rb'{"a":"\ud83e\udd99"}')
    assert serializer.parse_yaml('{"a":"\U0001f999","b":"\\\\ud83e"}'.encode()) == {"a": "\U0001f999", "b": "\\ud83e"}
