"""Fault injection over HTTP: commands, their effects, and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from wrpo_devcluster.apiserver.server import ApiServer
from wrpo_devcluster.client import CONFIG_MAPS, NAMESPACES, PODS, SERVICE_ACCOUNTS
from wrpo_devcluster.clock import SystemClock
from wrpo_devcluster.faults_http import PATH, FaultInjection, faults_middleware

ADMIN = "secret"
NODE_POD = {
    "metadata": {"name": "p"},
    "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 0},
}
Post = Callable[..., Awaitable[tuple[int, Any]]]


def play(tmp_path: Path, scenario: Callable[[ApiServer, Post], Awaitable[None]]) -> None:
    """Run a scenario with an API server and `post(body, token=...)`, which returns status and reply."""

    async def run() -> None:
        server = ApiServer(tmp_path / "state", admin_token=ADMIN)
        client = server.client("system:tests")
        app = server.app()
        injection = FaultInjection(server.faults, client, SystemClock(), server.close_watches)
        app.middlewares.append(faults_middleware(injection, ADMIN))
        async with TestClient(TestServer(app)) as http:
            await client.create(NAMESPACES, {"metadata": {"name": "ns"}})
            await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "default"}}, "ns")

            async def post(body: Any, *, token: str = ADMIN, path: str = PATH) -> tuple[int, Any]:
                data = body if isinstance(body, str) else json.dumps(body)
                headers = {"Authorization": f"Bearer {token}"}
                async with http.post(path, data=data, headers=headers) as response:
                    return response.status, await response.json()

            await scenario(server, post)
        await server.close()

    asyncio.run(run())


REFUSED: dict[str, tuple[Any, str]] = {
    "a field that does not exist": ({"typo": 1}, "typo: Extra inputs are not permitted"),
    "a nested field that does not exist": ({"refuse": {"codes": 1}}, "refuse.codes: Extra inputs are not permitted"),
    "a code that is no refusal": (
        {"refuse": {"code": 200}},
        "refuse.code: Value error, must be 0 (delay only) or an HTTP status from 400 to 599, not 200",
    ),
    "a count of another type": ({"refuse": {"times": "2"}}, "refuse.times: Input should be a valid integer"),
    "a negative delay": ({"schedulingDelaySeconds": -1}, "schedulingDelaySeconds: Input should be greater than"),
    "an unknown reason": (
        {"disrupt": {"namespace": "ns", "pod": "p", "reason": "Bored"}},
        "disrupt.reason: Input should be 'PreemptionByScheduler', 'EvictionByEvictionAPI' or",
    ),
    "a pod without a namespace": ({"losePod": {"pod": "p"}}, "losePod.namespace: Field required"),
    "a list": ([1], "Input should be an object"),
    "no JSON": ("{", "Invalid JSON"),
    "nothing": ({}, "the body names no fault"),
}


def test_a_command_that_is_wrong_is_refused_with_its_field_and_those_there_are(tmp_path: Path) -> None:
    async def scenario(server: ApiServer, post: Post) -> None:
        for case, (body, message) in REFUSED.items():
            status, answer = await post(body)
            assert (status, answer["reason"], answer["message"].startswith(message)) == (400, "BadRequest", True), (
                case,
                answer["message"],
            )
            assert answer["message"].endswith(
                "send an object with some of clear, pullErrors, schedulingDelaySeconds, refuse, closeWatches, disrupt,"
                " losePod, loseNode"
            )
        assert (server.faults.pull_errors, server.faults.refusals) == ({}, [])

    play(tmp_path, scenario)


def test_only_the_admin_injects_and_only_at_one_path(tmp_path: Path) -> None:
    async def scenario(_server: ApiServer, post: Post) -> None:
        status, answer = await post({"clear": True}, token="other")
        assert (status, answer["message"]) == (403, "forbidden: only the cluster's admin may inject faults")
        status, answer = await post({"clear": True}, path="/devcluster/fault")
        assert (status, answer["message"]) == (404, "unknown path; use GET or POST /devcluster/faults")

    play(tmp_path, scenario)


def test_a_command_sets_every_fault_that_it_names_and_clear_removes_all(tmp_path: Path) -> None:
    async def scenario(server: ApiServer, post: Post) -> None:
        command = {
            "pullErrors": {"img": "down"},
            "schedulingDelaySeconds": 2,
            "refuse": {"code": 503, "verb": "list", "resource": "configmaps", "times": 2, "retryAfterSeconds": 7},
        }
        status, state = await post(command)
        refusal = {
            "code": 503, "verb": "list", "group": None, "resource": "configmaps", "namespace": "", "name": "",
            "user": "", "times": 2, "delaySeconds": 0.0, "message": "injected fault", "retryAfterSeconds": 7,
        }  # fmt: skip
        assert status == 200
        assert state == {"pullErrors": {"img": "down"}, "schedulingDelaySeconds": 2.0, "refusals": [refusal]}
        assert server.faults.pull_error("img:1") == "down"
        _, state = await post({"clear": True})
        assert state == {"pullErrors": {}, "schedulingDelaySeconds": 0.0, "refusals": []}
        assert server.faults.pull_error("img:1") is None

    play(tmp_path, scenario)


def test_a_refusal_of_delay_only_lets_the_request_through(tmp_path: Path) -> None:
    async def scenario(server: ApiServer, post: Post) -> None:
        await post({"refuse": {"code": 0, "delaySeconds": 0.01, "resource": "configmaps"}})
        assert await server.client("system:tests").list(CONFIG_MAPS, "ns") == []
        assert server.faults.refusals[0].times == 0

    play(tmp_path, scenario)


def test_watches_pods_and_nodes_end_on_command(tmp_path: Path) -> None:
    async def scenario(server: ApiServer, post: Post) -> None:
        client = server.client("system:tests")
        assert (await post({"closeWatches": {"resource": "pods", "gone": True}}))[1]["closed"] == 0
        for ending in ({"losePod": {"namespace": "ns", "pod": "p"}}, {"disrupt": {"namespace": "ns", "pod": "p"}}):
            await client.create(PODS, NODE_POD, "ns")
            assert (await post(ending))[0] == 200
            assert await client.list(PODS, "ns") == []
        await client.create(PODS, NODE_POD, "ns")
        assert (await post({"loseNode": "n"}))[1]["lost"] == ["ns/p"]
        status, answer = await post({"losePod": {"namespace": "ns", "pod": "p"}})
        assert (status, answer["message"]) == (404, 'pods "p" not found')

    play(tmp_path, scenario)


@pytest.mark.parametrize(("code", "reason", "retry"), [(429, "TooManyRequests", 1), (409, "Conflict", None)])
def test_a_refusal_has_the_reason_of_its_code(tmp_path: Path, code: int, reason: str, retry: int | None) -> None:
    async def scenario(_server: ApiServer, post: Post) -> None:
        await post({"refuse": {"code": code}})
        status, answer = await post({}, path="/api/v1/namespaces/ns/configmaps")
        assert (status, answer["reason"], answer["message"]) == (code, reason, "injected fault")
        assert answer["details"].get("retryAfterSeconds") == retry

    play(tmp_path, scenario)
