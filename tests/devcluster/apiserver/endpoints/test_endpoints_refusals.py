"""Refusals for every kind: options, bodies, patches and versions; and the effects of limits."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import yaml
from devcluster.api_rig import ADMIN, WIDGETS, Rig, pod, widget

from wrpo_devcluster.client import CONFIG_MAPS, PODS, Resource

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
PATH = "/apis/test.example/v1/namespaces/ns/widgets"
MAPS = "/api/v1/namespaces/ns/configmaps"
TOKEN = "/api/v1/namespaces/ns/serviceaccounts/default/token"
AUTHENTICATION, AUTHORIZATION = "/apis/authentication.k8s.io/v1", "/apis/authorization.k8s.io/v1"
LIMIT_RANGES = Resource("", "v1", "limitranges")
MERGE, JSON_PATCH, APPLY = (
    f"application/{name}" for name in ("merge-patch+json", "json-patch+json", "apply-patch+yaml")
)
FUTURE = 10**12
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
Case = tuple[str, str, Any, str, int, str, list[tuple[str, str]]]


def case(
    method: str,
    path: str,
    code: int,
    reason: str,
    *causes: tuple[str, str],
    body: Any = None,
    content: str = "application/json",
) -> Case:
    return method, path, body, content, code, reason, list(causes)


def forbidden(field: str) -> tuple[str, str]:
    return "FieldValueForbidden", field


def unsupported(field: str) -> tuple[str, str]:
    return "FieldValueNotSupported", field


NEW = widget("new")
REFUSALS: dict[str, Case] = {
    "a match without a version": case(
        "GET", f"{PATH}?resourceVersionMatch=Exact", 422, "Invalid", forbidden("resourceVersionMatch")
    ),
    "a match of version 0": case(
        "GET", f"{PATH}?resourceVersionMatch=Exact&resourceVersion=0", 422, "Invalid", forbidden("resourceVersionMatch")
    ),
    "an unknown match": case(
        "GET", f"{PATH}?resourceVersion=1&resourceVersionMatch=Near", 422, "Invalid",
        unsupported("resourceVersionMatch"),
    ),
    "a list with initial events": case(
        "GET", f"{PATH}?sendInitialEvents=true", 422, "Invalid", forbidden("sendInitialEvents")
    ),
    "a list of the future": case(
        "GET", f"{PATH}?resourceVersion={FUTURE}", 504, "Timeout", ("ResourceVersionTooLarge", "")
    ),
    "an object of the future": case(
        "GET", f"{PATH}/w?resourceVersion={FUTURE}", 504, "Timeout", ("ResourceVersionTooLarge", "")
    ),
    "a made-up continue token": case("GET", f"{PATH}?continue=bogus", 400, "BadRequest"),
    "a watch with a match alone": case(
        "GET", f"{PATH}?watch=1&resourceVersionMatch=NotOlderThan", 422, "Invalid", forbidden("resourceVersionMatch")
    ),
    "a watch with an exact match": case(
        "GET", f"{PATH}?watch=1&sendInitialEvents=true&resourceVersionMatch=Exact", 422, "Invalid",
        forbidden("resourceVersionMatch"), unsupported("resourceVersionMatch"),
    ),
    "a manager with a long name": case(
        "POST", f"{PATH}?fieldManager={'m' * 129}", 422, "Invalid", ("FieldValueTooLong", "fieldManager"), body=NEW
    ),
    "an unprintable manager": case(
        "POST", f"{PATH}?fieldManager=a%07", 422, "Invalid", ("FieldValueInvalid", "fieldManager"), body=NEW
    ),
    "an unknown level of validation": case(
        "PUT", f"{PATH}/w?fieldValidation=Loose", 422, "Invalid", unsupported("fieldValidation"), body=NEW
    ),
    "an unknown dry run": case("POST", f"{PATH}?dryRun=Some", 422, "Invalid", unsupported("dryRun"), body=NEW),
    "force without apply": case(
        "PATCH", f"{PATH}/w?force=true", 422, "Invalid", forbidden("force"), body={}, content=MERGE
    ),
    "apply without a manager": case(
        "PATCH", f"{PATH}/w", 422, "Invalid", ("FieldValueRequired", "fieldManager"), body=NEW, content=APPLY
    ),
    "apply of a null": case(
        "PATCH", f"{PATH}/w?fieldManager=m", 422, "Invalid", ("FieldValueTypeInvalid", "spec.tags"),
        body={**NEW, "metadata": {"name": "w"}, "spec": {"tags": None}}, content=APPLY,
    ),
    "apply of a list": case("PATCH", f"{PATH}/w?fieldManager=m", 400, "BadRequest", body=[], content=APPLY),
    "two propagation policies": case(
        "DELETE", f"{PATH}/w", 422, "Invalid", ("FieldValueInvalid", "propagationPolicy"),
        body={"propagationPolicy": "Orphan", "orphanDependents": True},
    ),
    "an unknown propagation policy": case(
        "DELETE", f"{PATH}/w", 422, "Invalid", unsupported("propagationPolicy"), body={"propagationPolicy": "Never"}
    ),
    "an unknown dry run of a deletion": case(
        "DELETE", f"{PATH}/w", 422, "Invalid", unsupported("dryRun"), body={"dryRun": ["Some"]}
    ),
    "a merge patch that is a list": case("PATCH", f"{PATH}/w", 400, "BadRequest", body=[], content=MERGE),
    "a merge patch that is null": case("PATCH", f"{PATH}/w", 400, "BadRequest", body=b"null", content=MERGE),
    "a JSON patch that is an object": case("PATCH", f"{PATH}/w", 400, "BadRequest", body={}, content=JSON_PATCH),
    "a JSON patch with a number for op": case(
        "PATCH", f"{PATH}/w", 400, "BadRequest", body=[{"op": 1}], content=JSON_PATCH
    ),
    "a JSON patch of too many operations": case(
        "PATCH", f"{PATH}/w", 413, "RequestEntityTooLarge",
        body=[{"op": "test", "path": "/kind", "value": "Widget"}] * 10_001, content=JSON_PATCH,
    ),
    "an unknown operation": case(
        "PATCH", f"{PATH}/w", 422, "Invalid", body=[{"op": "no", "path": "/spec"}], content=JSON_PATCH
    ),
    "an operation without a path": case("PATCH", f"{PATH}/w", 422, "Invalid", body=[{"op": "add"}], content=JSON_PATCH),
    "an index outside the list": case(
        "PATCH", f"{PATH}/w", 422, "Invalid", body=[{"op": "add", "path": "/spec/tags/7", "value": "x"}],
        content=JSON_PATCH,
    ),
    "a test that fails": case(
        "PATCH", f"{PATH}/w", 422, "Invalid", body=[{"op": "test", "path": "/spec/min", "value": 9}], content=JSON_PATCH
    ),
    "a body that is too large": case(
        "POST", PATH, 413, "RequestEntityTooLarge", body=widget("big", tags=["x" * (3 << 20)])
    ),
    "an object that is too large to store": case("POST", PATH, 500, "", body=widget("big", tags=["x" * 1_600_000])),
    "a body that is no text": case("POST", PATH, 415, "UnsupportedMediaType", body=NEW, content="text/plain"),
    "a strategic patch of a custom resource": case(
        "PATCH", f"{PATH}/w", 415, "UnsupportedMediaType", body={}, content="application/strategic-merge-patch+json"
    ),
    "an unknown subresource": case("GET", f"{PATH}/w/nothing", 404, "NotFound"),
    "a built-in collection without its namespace": case("DELETE", "/api/v1/configmaps", 405, "MethodNotAllowed"),
    "a finalizer without a domain on a built-in kind": case(
        "POST", MAPS, 422, "Invalid", ("FieldValueInvalid", "metadata.finalizers"),
        body={"metadata": {"name": "c", "finalizers": ["bare"]}},
    ),
    "a ConfigMap with a key twice": case(
        "POST", MAPS, 422, "Invalid", ("FieldValueInvalid", "data[a]"),
        body={"metadata": {"name": "c"}, "data": {"a": "b"}, "binaryData": {"a": "Yg=="}},
    ),
    "a number that is none": case("GET", f"{PATH}?timeoutSeconds=soon", 400, "BadRequest"),
    "a new object under a name in the path": case(
        "POST", f"{MAPS}/c", 405, "MethodNotAllowed", body={"metadata": {"name": "c"}}
    ),
    "reading an eviction": case("GET", "/api/v1/namespaces/ns/pods/p/eviction", 405, "MethodNotAllowed"),
    "a review of no token": case("POST", f"{AUTHENTICATION}/tokenreviews", 400, "BadRequest", body={"spec": {}}),
    "a review of rules nowhere": case(
        "POST", f"{AUTHORIZATION}/selfsubjectrulesreviews", 400, "BadRequest", body={"spec": {}}
    ),
    "a review without user and attributes": case(
        "POST", f"{AUTHORIZATION}/subjectaccessreviews", 422, "Invalid", ("FieldValueInvalid", "spec.user"),
        ("FieldValueInvalid", "spec.resourceAttributes"), body={"spec": {}},
    ),
    "a review of a path and a resource": case(
        "POST", f"{AUTHORIZATION}/selfsubjectaccessreviews", 422, "Invalid",
        ("FieldValueInvalid", "spec.nonResourceAttributes"),
        body={"spec": {"resourceAttributes": {"verb": "get"}, "nonResourceAttributes": {"verb": "get"}}},
    ),
    "a token bound to a missing Secret": case(
        "POST", TOKEN, 404, "NotFound", body={"spec": {"boundObjectRef": {"kind": "Secret", "name": "none"}}}
    ),
    "a token bound to a ConfigMap": case(
        "POST", TOKEN, 400, "BadRequest", body={"spec": {"boundObjectRef": {"kind": "ConfigMap", "name": "c"}}}
    ),
    "a quota of an unknown resource": case(
        "POST", "/api/v1/namespaces/ns/resourcequotas", 422, "Invalid", ("FieldValueInvalid", "spec.hard[gpus]"),
        body={"metadata": {"name": "q"}, "spec": {"hard": {"gpus": "1"}}},
    ),
    "a budget of both kinds": case(
        "POST", "/apis/policy/v1/namespaces/ns/poddisruptionbudgets", 422, "Invalid", ("FieldValueInvalid", "spec"),
        body={"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "maxUnavailable": 1}},
    ),
    "a limit range whose least is above its most": case(
        "POST", "/api/v1/namespaces/ns/limitranges", 422, "Invalid",
        ("FieldValueInvalid", "spec.limits[0].min[cpu]"),
        body={
            "metadata": {"name": "l"},
            "spec": {"limits": [{"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "content", "code", "reason", "causes"), REFUSALS.values(), ids=REFUSALS.keys()
)
def test_a_request_is_refused_and_changes_nothing(
    run: Run, method: str, path: str, body: Any, content: str, code: int, reason: str, causes: list[tuple[str, str]]
) -> None:
    async def scenario(rig: Rig) -> None:
        before = await rig.client.create(WIDGETS, widget("w", tags=["a"]), "ns")

        status, found = await rig.request(method, path, body, content=content)

        told = [(cause["reason"], cause.get("field", "")) for cause in (found.get("details") or {}).get("causes", [])]
        assert (status, found.get("reason", ""), told) == (code, reason, causes), found
        assert await rig.client.list(WIDGETS, "ns") == [before]

    run(scenario)


PODS_REFUSED: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "half a GPU": (
        {"resources": {"limits": {"nvidia.com/gpu": "500m"}}},
        [
            ("FieldValueInvalid", "spec.containers[0].resources.limits[nvidia.com/gpu]"),
            ("FieldValueInvalid", "spec.containers[0].resources.requests[nvidia.com/gpu]"),
        ],
    ),
    "an unknown resource": (
        {"resources": {"requests": {"gpus": "1"}}},
        [
            ("FieldValueInvalid", "spec.containers[0].resources.requests[gpus]"),
            ("FieldValueInvalid", "spec.containers[0].resources.requests[gpus]"),
        ],
    ),
    "a probe without a handler": ({"livenessProbe": {}}, [("FieldValueRequired", "spec.containers[0].livenessProbe")]),
}
SPECS_REFUSED: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "a node selector": ({"nodeSelector": {"a b": "c"}}, [("FieldValueInvalid", "spec.nodeSelector")]),
    "a toleration of everything that must be equal": (
        {"tolerations": [{"effect": "NoSchedule"}]}, [("FieldValueInvalid", "spec.tolerations[0].operator")],
    ),
    "an unknown operator of a node's labels": (
        {
            "affinity": {
                "nodeAffinity": {
                    REQUIRED: {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Like"}]}]
                    }
                }
            }
        },
        [
            (
                "FieldValueInvalid",
                f"spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions[0].operator",
            )
        ],
    ),
    "affinity to nowhere": (
        {"affinity": {"podAffinity": {REQUIRED: [{"labelSelector": {}}]}}},
        [
            (
                "FieldValueRequired",
                f"spec.affinity.podAffinity.{REQUIRED}[0].topologyKey",
            )
        ],
    ),
    "a spread without a skew": (
        {"topologySpreadConstraints": [{"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 0}]},
        [("FieldValueInvalid", "spec.topologySpreadConstraints[0].maxSkew")],
    ),
    "a host name": ({"hostAliases": [{"ip": "here"}]}, [("FieldValueInvalid", "spec.hostAliases[0].ip")]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "causes"),
    [
        *(({"containers": [{"name": "c", "image": "i", **part}]}, causes) for part, causes in PODS_REFUSED.values()),
        *SPECS_REFUSED.values(),
    ],
    ids=[*PODS_REFUSED, *SPECS_REFUSED],
)
def test_a_pod_is_refused(run: Run, spec: dict[str, Any], causes: list[tuple[str, str]]) -> None:
    async def scenario(rig: Rig) -> None:
        status, found = await rig.request("POST", "/api/v1/namespaces/ns/pods", pod("p", **spec))
        assert status == 422, found
        assert [(cause["reason"], cause["field"]) for cause in found["details"]["causes"]] == causes

    run(scenario)


LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "too little": (
        {"min": {"cpu": "2"}},
        {"requests": {"cpu": "1"}},
        "minimum cpu usage per {} is 2, but request is 1",
    ),
    "too much": ({"max": {"cpu": "2"}}, {"limits": {"cpu": "3"}}, "maximum cpu usage per {} is 2, but limit is 3"),
    "too far apart": (
        {"maxLimitRequestRatio": {"cpu": "2"}},
        {"limits": {"cpu": "3"}, "requests": {"cpu": "1"}},
        "cpu max limit to request ratio per {} is 2, but provided ratio is 3.000000",
    ),
}


@pytest.mark.parametrize("kind", ["Pod", "Container"])
@pytest.mark.parametrize(("limit", "resources", "why"), LIMITS.values(), ids=LIMITS.keys())
def test_a_limit_range_refuses(run: Run, kind: str, limit: dict[str, Any], resources: dict[str, Any], why: str) -> None:
    async def scenario(rig: Rig) -> None:
        body = {"metadata": {"name": "l"}, "spec": {"limits": [{"type": kind, **limit}]}}
        await rig.client.create(LIMIT_RANGES, body, "ns")
        asked = pod("p", containers=[{"name": "c", "image": "i", "resources": resources}])

        status, found = await rig.request("POST", "/api/v1/namespaces/ns/pods", asked)

        assert (status, found["message"]) == (403, f'pods "p" is forbidden: {why.format(kind)}')

    run(scenario)


def test_a_limit_range_sets_defaults_from_its_bounds(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        limit = {"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Gi"}}
        made = await rig.client.create(LIMIT_RANGES, {"metadata": {"name": "l"}, "spec": {"limits": [limit]}}, "ns")
        (found,) = made["spec"]["limits"]
        assert (found["default"], found["defaultRequest"]) == ({"cpu": "2"}, {"cpu": "2", "memory": "1Gi"})
        stored = await rig.client.create(PODS, pod("p"), "ns")
        resources = stored["spec"]["containers"][0]["resources"]
        assert resources == {"limits": {"cpu": "2"}, "requests": {"cpu": "2", "memory": "1Gi"}}

    run(scenario)


def test_the_pages_of_a_list_are_of_one_moment_until_it_is_forgotten(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        for name in "abc":
            await rig.client.create(WIDGETS, widget(name), "ns")
        _, first = await rig.request("GET", f"{PATH}?limit=1")
        await rig.client.delete(WIDGETS, "b", "ns")
        await rig.client.create(WIDGETS, widget("bb"), "ns")
        await rig.client.patch(WIDGETS, "c", "ns", {"spec": {"min": 1}})
        token, moment = first["metadata"]["continue"], first["metadata"]["resourceVersion"]

        _, rest = await rig.request("GET", f"{PATH}?limit=5&continue={token}")
        shown = [(item["metadata"]["name"], item["spec"]["min"]) for item in rest["items"]]
        assert (shown, rest["metadata"]["resourceVersion"]) == ([("b", 0), ("c", 0)], moment)
        _, exact = await rig.request("GET", f"{PATH}?resourceVersion={moment}&resourceVersionMatch=Exact")
        assert [item["metadata"]["name"] for item in exact["items"]] == ["a", "b", "c"]
        _, newer = await rig.request("GET", f"{PATH}?resourceVersion={moment}")
        assert [item["metadata"]["name"] for item in newer["items"]] == ["a", "bb", "c"]

        rig.server.close_watches("widgets", gone=True)
        status, expired = await rig.request("GET", f"{PATH}?limit=5&continue={token}")
        assert (status, expired["reason"]) == (410, "Expired")
        _, rest = await rig.request("GET", f"{PATH}?limit=5&continue={expired['metadata']['continue']}")
        assert [item["metadata"]["name"] for item in rest["items"]] == ["bb", "c"]

    run(scenario)


def test_answers_and_refusals_come_as_yaml_where_that_is_asked(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        data = {"n": "1", "t": "true", "lines": "a\nb\n", "empty": "", "at": "2026-01-01T00:00:00Z"}
        await rig.client.create(CONFIG_MAPS, {"metadata": {"name": "c"}, "data": data}, "ns")
        headers = {"Authorization": f"Bearer {ADMIN}", "Accept": "application/yaml, application/json;q=0.5"}
        for name, code in (("c", 200), ("none", 404)):
            async with rig.http.get(f"{MAPS}/{name}", headers=headers) as response:
                text = await response.text()
                assert (response.status, response.headers["Content-Type"]) == (code, "application/yaml")
            async with rig.http.get(f"{MAPS}/{name}", headers={**headers, "Accept": "*/*"}) as response:
                assert yaml.safe_load(text) == json.loads(await response.text())

    run(scenario)


def test_dry_runs_of_deletions_delete_nothing(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(WIDGETS, widget("w"), "ns")
        for path, body in (
            (f"{PATH}/w", {"dryRun": ["All"]}),
            (f"{PATH}/w?dryRun=All", None),
            (f"{PATH}?dryRun=All", None),
        ):
            status, _ = await rig.request("DELETE", path, body)
            assert status == 200
        assert len(await rig.client.list(WIDGETS, "ns")) == 1

    run(scenario)


def test_negative_indexes_of_a_json_patch_count_from_the_end(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(WIDGETS, widget("w", tags=["a", "b"]), "ns")
        steps = [{"op": "add", "path": "/spec/tags/-1", "value": "c"}, {"op": "remove", "path": "/spec/tags/-3"}]
        status, found = await rig.request("PATCH", f"{PATH}/w", steps, content=JSON_PATCH)
        assert (status, found["spec"]["tags"]) == (200, ["b", "c"])

    run(scenario)
