"""The progress endpoint: who may post what."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from wrpo_operator.plan.model import ProgressFact
from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.runtime.progress_server import ProgressBook, ProgressServer

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
URL = "/v1/namespaces/ns/experiments/fusion/stages/sample.qwen/attempts/2"
BODY = {
    "trainerStatus": {
        "progressPercentage": 40,
        "estimatedRemainingSeconds": 90,
        "metrics": [{"name": "loss", "value": "0.5"}, {"name": "bad", "value": "NaN"}],
        "lastUpdatedTime": "2026-01-01T12:00:00Z",
    }
}
LABELS = {
    "wrpo.ai/experiment": "fusion",
    "wrpo.ai/stage": "sample.qwen",
    "wrpo.ai/attempt": "2",
    "batch.kubernetes.io/job-completion-index": "1",
}


def review(
    pod: str = "p", uid: str = "p-1", namespace: str = "ns", audiences: Any = ("wrpo.ai/progress",)
) -> dict[str, Any]:
    return {
        "authenticated": True,
        "audiences": list(audiences),
        "user": {
            "username": f"system:serviceaccount:{namespace}:wrpo-stage",
            "extra": {"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid]},
        },
    }


class World:
    def __init__(self, kube: Any, clock: Any) -> None:
        self.kube, self.clock = kube, clock
        self.kube.review_answer = review()
        self.pods = {("ns", "p"): {"metadata": {"name": "p", "uid": "p-1", "labels": LABELS}, "status": {}}}
        self.book = ProgressBook()
        self.woken: list[tuple[str, str]] = []
        self.server = ProgressServer(
            kube,
            self,
            self.book,
            audience="wrpo.ai/progress",
            now=lambda: NOON,
            monotonic=clock,
            on_post=lambda namespace, name: self.woken.append((namespace, name)),
        )

    def pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        return self.pods.get((namespace, name))

    def post(self, *posts: dict[str, Any]) -> list[tuple[int, str]]:
        async def main() -> list[tuple[int, str]]:
            answers = []
            async with TestClient(TestServer(self.server.app())) as client:
                for given in posts:
                    headers = {"Authorization": given.get("auth", "Bearer good")}
                    self.clock.at += given.get("later", 0)
                    request = {"data": given["data"]} if "data" in given else {"json": given.get("json", BODY)}
                    async with client.post(given.get("url", URL), headers=headers, **request) as answer:
                        answers.append((answer.status, (await answer.json()).get("error", "")))
            return answers

        return asyncio.run(main())


@pytest.fixture
def world(kube: Any, clock: Any) -> World:
    return World(kube, clock)


def test_a_post_of_the_stages_own_pod_is_kept_and_wakes_the_experiment(world: World) -> None:
    assert world.post({}) == [(200, "")]
    expected = ProgressFact(40.0, 90.0, {"loss": 0.5}, NOON, shard=1, advanced_at=NOON)
    assert world.book.of("ns", "fusion") == {("sample/qwen", 2): (expected,)}
    assert world.woken == [("ns", "fusion")]
    assert world.kube.reviews[0]["spec"] == {"token": "good", "audiences": ["wrpo.ai/progress"]}


def test_at_most_one_post_in_five_seconds_and_one_review_a_minute(world: World) -> None:
    answers = world.post({}, {"later": 4}, {"later": 1}, {"later": 61})
    assert [status for status, _ in answers] == [200, 429, 200, 200]
    assert len(world.kube.reviews) == 2


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, str]]] = {
    "without a token": ({}, {"auth": ""}, (401, "a bearer token is needed")),
    "with an unknown token": (
        {"review": {"authenticated": False, "error": "bad"}},
        {},
        (401, "the token is not valid for audience wrpo.ai/progress"),
    ),
    "with a token for the API server": (
        {"review": review(audiences=["https://kubernetes.default.svc"])},
        {},
        (401, "the token is not valid for audience wrpo.ai/progress"),
    ),
    "with a token of a user": (
        {"review": {**review(), "user": {"username": "admin"}}},
        {},
        (403, "the token is not bound to a pod"),
    ),
    "of a pod of another stage": (
        {},
        {"url": URL.replace("sample.qwen", "train")},
        (403, "pod p does not run train attempt 2"),
    ),
    "of a pod of another attempt": (
        {},
        {"url": URL.replace("attempts/2", "attempts/1")},
        (403, "pod p does not run sample/qwen attempt 1"),
    ),
    "of a pod of another namespace": (
        {"review": review(namespace="other")},
        {},
        (403, "pod p does not run sample/qwen attempt 2"),
    ),
    "of an earlier pod of the same name": (
        {"review": review(uid="p-0")},
        {},
        (403, "pod p does not run sample/qwen attempt 2"),
    ),
    "that is not JSON": ({}, {"data": b"{"}, (400, "the body is not JSON")),
    "that is too large": ({}, {"data": b"x" * 20000}, (413, "the body exceeds 16384 bytes")),
    "without a status": ({}, {"json": {"percent": 3}}, (400, "the body needs an object trainerStatus")),
    "without a percentage": (
        {},
        {"json": {"trainerStatus": {"progressPercentage": "much"}}},
        (400, "trainerStatus.progressPercentage needs a number from 0 to 100"),
    ),
}


@pytest.mark.parametrize(("setting", "given", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_a_post_is_refused(
    world: World, setting: dict[str, Any], given: dict[str, Any], expected: tuple[int, str]
) -> None:
    world.kube.review_answer = setting.get("review", world.kube.review_answer)
    assert world.post(given) == [expected]
    assert world.book.of("ns", "fusion") == {}
    assert world.woken == []


def test_when_tokens_cannot_be_reviewed_the_pod_may_try_again(world: World) -> None:
    world.kube.fail["create", "tokenreviews"] = KubeError(0, "Unreachable", "gone")
    assert world.post({}) == [(503, "tokens cannot be reviewed now")]


def test_the_percentage_is_held_within_bounds(world: World) -> None:
    world.post({"json": {"trainerStatus": {"progressPercentage": 250, "estimatedRemainingSeconds": -3}}})
    (fact,) = world.book.of("ns", "fusion")["sample/qwen", 2]
    assert (fact.percent, fact.remaining_s) == (100.0, 0.0)
