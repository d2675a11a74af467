"""The server from a client's view: rights, tokens, watches, pages, restarts, deletion, admission, protobuf, faults."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from devcluster.api_rig import WIDGETS, Rig, pod, refusal, widget
from support.patience import LIMIT_S

from wrpo_devcluster.apiserver.auth.rbac import Attributes
from wrpo_devcluster.apiserver.endpoints.http import _parse_protobuf
from wrpo_devcluster.client import CONFIG_MAPS, NAMESPACES, PODS, SECRETS, SERVICE_ACCOUNTS, Resource
from wrpo_devcluster.faults import Refusal

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings")
CLUSTER_ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings")
MAPS = "/api/v1/namespaces/ns/configmaps"


async def worker_token(rig: Rig, rules: list[dict[str, Any]], **options: Any) -> str:
    """Return a token of the service account `worker`, which gets a role with `rules`."""
    await rig.client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "worker"}}, "ns")
    await rig.client.create(ROLES, {"metadata": {"name": "r"}, "rules": rules}, "ns")
    binding = {
        "metadata": {"name": "r"},
        "roleRef": {"kind": "Role", "name": "r", "apiGroup": "rbac.authorization.k8s.io"},
        "subjects": [{"kind": "ServiceAccount", "name": "worker", "namespace": "ns"}],
    }
    await rig.client.create(ROLE_BINDINGS, binding, "ns")
    arguments: dict[str, Any] = {"audiences": [], "expires_s": 600, "pod": None, **options}
    return rig.server.tokens.issue("ns", "worker", **arguments)


def rule(groups: str, resources: str, verbs: str, *names: str) -> dict[str, Any]:
    found: dict[str, Any] = {"apiGroups": [groups], "resources": resources.split(), "verbs": verbs.split()}
    return {**found, "resourceNames": list(names)} if names else found


RIGHTS: dict[str, tuple[dict[str, Any], str, str, int]] = {
    "a granted verb": (rule("", "configmaps", "list"), "GET", MAPS, 200),
    "another verb": (rule("", "configmaps", "get"), "GET", MAPS, 403),
    "another namespace": (rule("", "configmaps", "list"), "GET", "/api/v1/namespaces/default/configmaps", 403),
    "all namespaces": (rule("", "configmaps", "list"), "GET", "/api/v1/configmaps", 403),
    "a named object": (rule("", "configmaps", "get", "c"), "GET", f"{MAPS}/c", 200),
    "another name": (rule("", "configmaps", "get", "c"), "GET", f"{MAPS}/d", 403),
    "a list of one named object": (
        rule("", "configmaps", "list", "c"), "GET", f"{MAPS}?fieldSelector=metadata.name%3Dc", 200,
    ),
    "a subresource is not its resource": (
        rule("test.example", "widgets", "*"), "GET", "/apis/test.example/v1/namespaces/ns/widgets/w/status", 403,
    ),
    "every resource": (rule("*", "*", "*"), "DELETE", f"{MAPS}/c", 200),
    "discovery is for everybody": (rule("", "pods", "get"), "GET", "/apis", 200),
}  # fmt: skip


@pytest.mark.parametrize(("granted", "method", "path", "expected"), RIGHTS.values(), ids=RIGHTS.keys())
def test_rights_are_those_of_the_role(run: Run, granted: Any, method: str, path: str, expected: int) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(CONFIG_MAPS, {"metadata": {"name": "c"}}, "ns")
        token = await worker_token(rig, [granted])
        status, body = await rig.request(method, path, token=token)
        assert status == expected, body

    run(scenario)


def test_nobody_grants_more_than_they_hold(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        rights = [rule("rbac.authorization.k8s.io", "roles", "create get"), rule("", "pods", "get")]
        token = await worker_token(rig, rights)
        path = "/apis/rbac.authorization.k8s.io/v1/namespaces/ns/roles"
        status, body = await rig.request(
            "POST", path, {"metadata": {"name": "x"}, "rules": [rule("", "secrets", "get")]}, token=token
        )
        assert status == 403
        assert "is attempting to grant RBAC permissions not currently held" in body["message"]
        status, _ = await rig.request(
            "POST", path, {"metadata": {"name": "y"}, "rules": [rule("", "pods", "get")]}, token=token
        )
        assert status == 201

    run(scenario)


def test_a_token_is_good_for_its_audience_its_time_and_its_pod(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        rights = [rule("", "configmaps", "list")]
        other = await worker_token(rig, rights, audiences=["other"])
        assert (await rig.request("GET", MAPS, token=other))[0] == 401
        expired = rig.server.tokens.issue("ns", "worker", audiences=[], expires_s=-1, pod=None)
        assert (await rig.request("GET", MAPS, token=expired))[0] == 401
        owner = await rig.client.create(PODS, pod("p", serviceAccountName="worker"), "ns")
        pod_key = ("p", owner["metadata"]["uid"])
        bound = rig.server.tokens.issue("ns", "worker", audiences=[], expires_s=600, pod=pod_key)
        assert (await rig.request("GET", MAPS, token=bound))[0] == 200
        await rig.client.delete(PODS, "p", "ns")
        assert (await rig.request("GET", MAPS, token=bound))[0] == 401
        assert (await rig.request("GET", MAPS, token="nonsense"))[0] == 401

    run(scenario)


async def events(rig: Rig, query: str) -> list[tuple[str, str]]:
    headers = {"Authorization": "Bearer admin"}
    async with rig.http.get(f"{MAPS}?watch=1&timeoutSeconds=1&{query}", headers=headers) as response:
        lines = [json.loads(line) for line in (await response.text()).splitlines()]
    return [(line["type"], line["object"].get("metadata", {}).get("name", "")) for line in lines]


def test_a_watch_resumes_where_it_stopped_and_follows_its_selector(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        first = await rig.client.create(CONFIG_MAPS, {"metadata": {"name": "a", "labels": {"k": "v"}}}, "ns")
        since = first["metadata"]["resourceVersion"]
        await rig.client.create(CONFIG_MAPS, {"metadata": {"name": "b"}}, "ns")
        await rig.client.patch(CONFIG_MAPS, "b", "ns", {"metadata": {"labels": {"k": "v"}}})
        await rig.client.patch(CONFIG_MAPS, "a", "ns", {"metadata": {"labels": None}})
        await rig.client.delete(CONFIG_MAPS, "b", "ns")
        everything, selected = await asyncio.gather(
            events(rig, f"resourceVersion={since}"), events(rig, f"resourceVersion={since}&labelSelector=k%3Dv")
        )
        assert everything == [("ADDED", "b"), ("MODIFIED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
        assert selected == [("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")]

    run(scenario)


def test_a_watch_from_forgotten_history_is_told_so(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        first = await rig.client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, "ns")
        assert rig.server.close_watches("configmaps", gone=True) == 0
        headers = {"Authorization": "Bearer admin"}
        query = f"{MAPS}?watch=1&timeoutSeconds=1&resourceVersion={first['metadata']['resourceVersion']}"
        async with rig.http.get(query, headers=headers) as response:
            line = json.loads(await response.text())
        assert (line["type"], line["object"]["code"], line["object"]["reason"]) == ("ERROR", 410, "Expired")

    run(scenario)


def test_the_in_process_watch_outlives_broken_watches(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        watch = rig.client.watch(CONFIG_MAPS)
        await rig.client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, "ns")
        first = await anext(watch)
        rig.server.close_watches("configmaps")
        await rig.client.create(CONFIG_MAPS, {"metadata": {"name": "b"}}, "ns")
        seen = {first.object["metadata"]["name"]}
        async with asyncio.timeout(LIMIT_S):
            while seen != {"a", "b"}:
                seen.add((await anext(watch)).object["metadata"]["name"])
        await watch.aclose()  # type: ignore[attr-defined]

    run(scenario)


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_together_are_the_list(run: Run, limit: int) -> None:
    async def scenario(rig: Rig) -> None:
        for index in range(5):
            await rig.client.create(CONFIG_MAPS, {"metadata": {"name": f"c{index}"}}, "ns")
        names: list[str] = []
        token = ""
        while True:
            _, body = await rig.request("GET", f"{MAPS}?limit={limit}&continue={token}")
            assert len(body["items"]) <= limit
            names += [item["metadata"]["name"] for item in body["items"]]
            token = body["metadata"].get("continue", "")
            if not token:
                break
        assert names == ["c0", "c1", "c2", "c3", "c4"]

    run(scenario)


def test_everything_is_there_after_a_restart_and_versions_go_on_rising(run: Run) -> None:
    seen: dict[str, Any] = {}

    async def before(rig: Rig) -> None:
        seen["widget"] = await rig.client.create(WIDGETS, widget("w", max=12), "ns")
        seen["token"] = await worker_token(rig, [rule("test.example", "widgets", "get")])

    async def after(rig: Rig) -> None:
        assert await rig.client.get(WIDGETS, "w", "ns") == seen["widget"]
        path = "/apis/test.example/v1/namespaces/ns/widgets/w"
        assert (await rig.request("GET", path, token=seen["token"]))[0] == 200
        changed = await rig.client.patch(WIDGETS, "w", "ns", {"spec": {"max": 13}})
        assert int(changed["metadata"]["resourceVersion"]) > int(seen["widget"]["metadata"]["resourceVersion"])

    run(before)
    run(after)


def test_an_object_with_a_finalizer_goes_when_the_last_one_does(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(CONFIG_MAPS, {"metadata": {"name": "c", "finalizers": ["x.io/hold"]}}, "ns")
        await rig.client.delete(CONFIG_MAPS, "c", "ns")
        held = await rig.client.get(CONFIG_MAPS, "c", "ns")
        assert held["metadata"]["deletionTimestamp"]
        await rig.client.patch(CONFIG_MAPS, "c", "ns", {"metadata": {"finalizers": None}})
        assert (await refusal(rig.client.get(CONFIG_MAPS, "c", "ns"))).code == 404

    run(scenario)


def test_a_running_pod_gets_its_grace_period_and_ends_with_zero(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(PODS, pod("p", terminationGracePeriodSeconds=7), "ns")
        binding = {"metadata": {"name": "p", "namespace": "ns"}, "target": {"kind": "Node", "name": "n"}}
        await rig.client.update(PODS, binding, subresource="binding")
        await rig.client.delete(PODS, "p", "ns")
        ending = await rig.client.get(PODS, "p", "ns")
        assert (ending["metadata"]["deletionGracePeriodSeconds"], ending["spec"]["nodeName"]) == (7, "n")
        await rig.client.delete(PODS, "p", "ns", grace_period_s=0)
        assert (await refusal(rig.client.get(PODS, "p", "ns"))).code == 404

    run(scenario)


def test_pods_get_a_service_account_token_and_are_refused_without_the_account(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        found = await rig.client.create(PODS, pod("p"), "ns")
        mounts = found["spec"]["containers"][0]["volumeMounts"]
        assert [mount["mountPath"] for mount in mounts] == ["/var/run/secrets/kubernetes.io/serviceaccount"]
        bare = await rig.client.create(PODS, pod("q", automountServiceAccountToken=False), "ns")
        assert "volumes" not in bare["spec"]
        error = await refusal(rig.client.create(PODS, pod("r", serviceAccountName="none"), "ns"))
        assert (error.code, error.reason) == (403, "Forbidden")

    run(scenario)


def test_secrets_take_plain_text_and_immutable_ones_stay(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        body = {"metadata": {"name": "s"}, "stringData": {"k": "v"}, "immutable": True}
        found = await rig.client.create(SECRETS, body, "ns")
        assert (found["data"], found["type"], "stringData" in found) == ({"k": "dg=="}, "Opaque", False)
        error = await refusal(rig.client.patch(SECRETS, "s", "ns", {"stringData": {"k": "w"}}))
        assert error.status["details"]["causes"][0]["field"] == "data"

    run(scenario)


def _field(number: int, payload: bytes | str | int) -> bytes:
    if isinstance(payload, int):
        return bytes([number << 3, payload])
    data = payload.encode() if isinstance(payload, str) else payload
    return bytes([number << 3 | 2, len(data)]) + data


def _envelope(version: str, kind: str, message: bytes) -> bytes:
    return b"k8s\x00" + _field(1, _field(1, version) + _field(2, kind)) + _field(2, message)


def test_protobuf_bodies_decode_by_the_published_field_numbers() -> None:
    meta = _field(1, "s") + _field(11, _field(1, "app") + _field(2, "x")) + _field(14, "a/b") + _field(14, "c/d")
    secret = _field(1, meta) + _field(2, _field(1, "k") + _field(2, b"\x00\xff")) + _field(3, "Opaque") + _field(5, 1)
    assert _parse_protobuf(_envelope("v1", "Secret", secret)) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "labels": {"app": "x"}, "finalizers": ["a/b", "c/d"]},
        "data": {"k": "AP8="},
        "type": "Opaque",
        "immutable": True,
    }
    options = _field(1, 0) + _field(2, _field(1, "u")) + _field(4, "Background")
    assert _parse_protobuf(_envelope("v1", "DeleteOptions", options)) == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": 0,
        "preconditions": {"uid": "u"},
        "propagationPolicy": "Background",
    }


def test_truncated_protobuf_is_a_bad_request(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        good = _envelope("v1", "ConfigMap", _field(1, _field(1, "c")) + _field(2, _field(1, "k") + _field(2, "v")))
        media = "application/vnd.kubernetes.protobuf"
        status, body = await rig.request("POST", MAPS, good, content=media)
        assert (status, body["data"]) == (201, {"k": "v"})
        for broken in (good[:-3], b"nothing", struct.pack("<I", 7)):
            status, body = await rig.request("POST", MAPS, broken, content=media)
            assert (status, body["reason"]) == (400, "BadRequest")

    run(scenario)


def test_injected_faults_apply_as_often_as_asked(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        fault = rig.server.faults.refuse(Refusal(code=429, verb="get", resource="configmaps", times=2, retry_after_s=3))
        await rig.client.create(CONFIG_MAPS, {"metadata": {"name": "c"}}, "ns")
        assert (await refusal(rig.client.get(CONFIG_MAPS, "c", "ns"))).code == 429
        status, body = await rig.request("GET", f"{MAPS}/c")
        assert (status, body["details"]["retryAfterSeconds"]) == (429, 3)
        assert (await rig.request("GET", f"{MAPS}/c"))[0] == 200
        assert fault.times == 0

    run(scenario)


def test_every_request_is_logged_with_user_and_result(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        token = await worker_token(rig, [rule("", "configmaps", "list")])
        seen: list[tuple[Any, ...]] = []
        rig.server.attached.request_log = lambda *entry: seen.append(entry)
        await rig.request("GET", MAPS, token=token)
        await rig.request("GET", f"{MAPS}/c", token=token)
        worker = "system:serviceaccount:ns:worker"
        assert seen == [
            (worker, Attributes("list", resource="configmaps", namespace="ns"), 200),
            (worker, Attributes("get", resource="configmaps", namespace="ns", name="c"), 403),
        ]

    run(scenario)


def test_names_and_namespaces_are_checked(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        error = await refusal(rig.client.create(CONFIG_MAPS, {"metadata": {"name": "Bad"}}, "ns"))
        assert (error.code, error.status["details"]["causes"][0]["field"]) == (422, "metadata.name")
        assert (await refusal(rig.client.create(CONFIG_MAPS, {"metadata": {"name": "c"}}, "none"))).code == 404
        assert (await refusal(rig.client.create(NAMESPACES, {"metadata": {"name": "ns"}}))).reason == "AlreadyExists"

    run(scenario)


def test_events_of_both_groups_are_the_same_objects(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        new, core = "/apis/events.k8s.io/v1/namespaces/ns/events", "/api/v1/namespaces/ns/events"
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "e"},
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "regarding": {"kind": "Pod", "name": "p", "namespace": "ns"},
            "reason": "Why",
            "action": "Look",
            "type": "Normal",
            "note": "because",
            "reportingController": "me",
            "reportingInstance": "me-0",
        }
        status, body = await rig.request("POST", new, event)
        assert (status, body["regarding"]["name"], body["note"]) == (201, "p", "because")
        status, body = await rig.request("GET", f"{core}?fieldSelector=involvedObject.name%3Dp")
        assert [(item["message"], item["reportingComponent"]) for item in body["items"]] == [("because", "me")]
        status, body = await rig.request("GET", f"{new}?fieldSelector=regarding.name%3Dp")
        assert [item["note"] for item in body["items"]] == ["because"]
        merge = "application/merge-patch+json"
        series = {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}
        status, body = await rig.request("PATCH", f"{new}/e", {"series": series}, content=merge)
        assert (status, body["series"]) == (200, series)
        status, body = await rig.request("PATCH", f"{new}/e", {"note": "so"}, content=merge)
        assert (status, body["message"]) == (
            422,
            'Event.events.k8s.io "e" is invalid: message: Invalid value: "so": field is immutable',
        )

    run(scenario)


SAFE = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
POD_SECURITY: dict[str, tuple[str, dict[str, Any], int]] = {
    "restricted accepts a safe pod": (
        "restricted", {"containers": [{"name": "c", "image": "i", "securityContext": SAFE}]}, 201,
    ),
    "restricted refuses a bare pod": ("restricted", {"containers": [{"name": "c", "image": "i"}]}, 403),
    "baseline accepts a bare pod": ("baseline", {"containers": [{"name": "c", "image": "i"}]}, 201),
    "baseline refuses host paths": (
        "baseline",
        {"containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
        403,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("level", "spec", "expected"), POD_SECURITY.values(), ids=POD_SECURITY.keys())
def test_pod_security_is_enforced_by_namespace_label(run: Run, level: str, spec: Any, expected: int) -> None:
    async def scenario(rig: Rig) -> None:
        labels = {"pod-security.kubernetes.io/enforce": level}
        await rig.client.patch(NAMESPACES, "ns", None, {"metadata": {"labels": labels}})
        status, body = await rig.request(
            "POST", "/api/v1/namespaces/ns/pods", {"metadata": {"name": "p"}, "spec": spec}
        )
        assert status == expected, body

    run(scenario)
