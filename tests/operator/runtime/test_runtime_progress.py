"""The progress endpoint: who may post what."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import example, given
from hypothesis import strategies as st
from support.builders import make_child, make_experiment, make_snapshot, raw_spec
from support.crd_validation import experiment_object, refusals

from wrpo_operator.api.status import parse_status as read_status
from wrpo_operator.plan.model import ChildState, ProgressFact
from wrpo_operator.plan.planner import plan
from wrpo_operator.plan.progress import MAX_REMAINING_S
from wrpo_operator.runtime import progress_server
from wrpo_operator.runtime.cluster import Cluster
from wrpo_operator.runtime.kube import KubeError
from wrpo_operator.runtime.progress_server import (
    ProgressHost,
    ProgressServer,
    ProgressStore,
    RefusedError,
    StageAddress,
    parse_status,
)
from wrpo_operator.runtime.resources import PODS
from wrpo_operator.runtime.store import ObjectStore

FIELDS = ["progressPercentage", "estimatedRemainingSeconds", "metrics", "name", "value"]

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
        self.store = ObjectStore()
        pod = {"metadata": {"namespace": "ns", "name": "p", "uid": "p-1", "labels": LABELS}, "status": {}}
        self.store.upsert(PODS, pod)
        self.book = ProgressStore()
        self.woken: list[tuple[str, str]] = []
        self.leading = True
        self.rebuild()

    def rebuild(self) -> None:
        host = ProgressHost(
            on_post=lambda namespace, name: self.woken.append((namespace, name)), leading=lambda: self.leading
        )
        cluster = Cluster(client=self.kube, store=self.store, now=lambda: NOON, monotonic=self.clock)
        self.server = ProgressServer(cluster, self.book, "wrpo.ai/progress", host)

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
    "without a token": ({}, {"auth": ""}, (401, "a bearer token is required")),
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
    "without a status": ({}, {"json": {"percent": 3}}, (400, "trainerStatus must be an object")),
    "without a percentage": (
        {},
        {"json": {"trainerStatus": {"progressPercentage": "much"}}},
        (400, "trainerStatus.progressPercentage must be a number from 0 to 100"),
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
    assert world.post({}) == [(503, "tokens cannot be reviewed at the moment")]


def test_the_percentage_is_held_within_bounds(world: World) -> None:
    world.post({"json": {"trainerStatus": {"progressPercentage": 250, "estimatedRemainingSeconds": -3}}})
    (fact,) = world.book.of("ns", "fusion")["sample/qwen", 2]
    assert (fact.percent, fact.remaining_s) == (100.0, 0.0)


# Attacks. The worst that any of them may reach is a wrong percentage of the attacker's own stage.


def test_a_replayed_post_shows_an_old_percentage_and_nothing_else(world: World) -> None:
    """A stolen body is only taken from the stage's own pod, at most every five seconds, and is a hint again."""
    stolen = {"json": {"trainerStatus": {"progressPercentage": 10}}}
    assert world.post({}, {**stolen, "later": 1}, {**stolen, "later": 5}) == [
        (200, ""),
        (429, "at most one post in 5 s"),
        (200, ""),
    ]
    (fact,) = world.book.of("ns", "fusion")["sample/qwen", 2]
    assert (fact.percent, fact.received_at) == (10.0, NOON)


def test_a_stolen_token_serves_no_other_experiment(world: World) -> None:
    answers = world.post({"url": URL.replace("fusion", "victim")}, {"url": URL.replace("/ns/", "/other/")})
    assert [code for code, _ in answers] == [403, 403]
    assert world.book.of("ns", "victim") == world.book.of("other", "fusion") == {}


def test_a_token_for_another_audience_is_refused_even_if_the_server_says_it_is_genuine(world: World) -> None:
    world.kube.review_answer = review(audiences=["https://kubernetes.default.svc"])
    assert world.post({}) == [(401, "the token is not valid for audience wrpo.ai/progress")]


def test_a_flood_of_bad_tokens_asks_the_api_server_once_for_each(world: World) -> None:
    world.kube.review_answer = {"authenticated": False}
    answers = world.post(*[{"auth": "Bearer guessed"}] * 20)
    assert {code for code, _ in answers} == {401}
    assert len(world.kube.reviews) == 1
    world.post({"auth": "Bearer guessed", "later": progress_server.REFUSAL_CACHE_S + 1})
    assert len(world.kube.reviews) == 2


def test_while_many_reviews_are_open_further_tokens_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_server, "MAX_REVIEWS_AT_ONCE", 0)
    assert world.post({}) == [(503, "too many tokens are being reviewed")]
    assert world.kube.reviews == []


def test_what_is_remembered_of_callers_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_server, "MAX_TRACKED", 3)
    world.rebuild()
    world.kube.review_answer = {"authenticated": False}
    world.post(*[{"auth": f"Bearer {number}"} for number in range(10)])
    assert len(world.server._callers) == 3
    kept = repr(vars(world.server._callers))
    assert "Bearer" not in kept


def test_relabelling_a_pod_again_and_again_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_server, "MAX_STAGES", 4)
    monkeypatch.setattr(progress_server, "MAX_SHARDS", 2)
    book = ProgressStore()
    for attempt in range(20):
        for shard in range(5):
            fact = ProgressFact(1.0, None, {}, NOON, shard=shard)
            book.put(StageAddress("ns", "fusion", "train", attempt), fact)
    facts = book.of("ns", "fusion")
    assert sorted(facts) == [("train", attempt) for attempt in range(16, 20)]
    assert all(len(shards) == 2 for shards in facts.values())


HOSTILE = {
    "deep nesting": b"[" * 15000,
    "a number that is no double": b'{"trainerStatus": {"progressPercentage": 1' + b"0" * 400 + b"}}",
    "a number too long to read": b'{"trainerStatus": {"progressPercentage": ' + b"9" * 5000 + b"}}",
    "infinity": b'{"trainerStatus": {"progressPercentage": Infinity}}',
    "bytes that are no text": b"\xff\xfe\x00",
    "a list": b"[]",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_is_a_bad_request(world: World, data: bytes) -> None:
    ((code, _),) = world.post({"data": data})
    assert code == 400
    assert world.book.of("ns", "fusion") == {}


@pytest.mark.parametrize("metrics", [5, "loss", {"loss": 1}, [None, 5, {"name": {}, "value": {}}]])
def test_metrics_of_another_form_are_left_out(world: World, metrics: Any) -> None:
    assert world.post({"json": {"trainerStatus": {"progressPercentage": 1, "metrics": metrics}}}) == [(200, "")]
    (fact,) = world.book.of("ns", "fusion")["sample/qwen", 2]
    assert fact.metrics == {}


@pytest.mark.parametrize("attempt", ["9" * 5000, "\u0662", "-1", "1.0"])
def test_an_attempt_that_is_no_number_is_not_found(world: World, attempt: str) -> None:
    ((code, _),) = world.post({"url": URL.replace("attempts/2", f"attempts/{attempt}")})
    assert code == 404


TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
BODIES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=12,
)
POSTS = BODIES | st.fixed_dictionaries(
    {
        "progressPercentage": st.floats(allow_nan=False, allow_infinity=False),
        "estimatedRemainingSeconds": st.floats(min_value=0) | st.integers(min_value=0),
        "metrics": st.lists(st.fixed_dictionaries({"name": TEXT, "value": st.floats()}), max_size=3),
    }
)


def integers(value: Any) -> Iterator[int]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from integers(item)
    elif isinstance(value, int):
        yield value


HALF = {"progressPercentage": 1, "metrics": [{"name": "\ud800", "value": 1}]}
"""A metric named by half of a character, which JSON can hold and UTF-8 cannot."""


@example([HALF, HALF])
@given(st.lists(POSTS, min_size=2, max_size=2))
def test_whatever_is_posted_is_refused_or_shown_in_a_status_that_the_api_server_stores(bodies: list[Any]) -> None:
    experiment = make_experiment(name="fusion")
    stages = ("sample/qwen", "sample/yi")
    children = [make_child(experiment, "prepare", ChildState.SUCCEEDED), *(make_child(experiment, at) for at in stages)]
    posts: dict[tuple[str, int], tuple[ProgressFact, ...]] = {}
    for stage, body in zip(stages, bodies, strict=True):
        with contextlib.suppress(RefusedError):
            posts[stage, 1] = (parse_status({"trainerStatus": body}, now=NOON, shard=0),)
    for (fact,) in posts.values():
        assert 0 <= fact.percent <= 100
        assert fact.remaining_s is None or 0 <= fact.remaining_s <= MAX_REMAINING_S
        assert len(fact.metrics) <= 32
        assert all(math.isfinite(value) for value in fact.metrics.values())
    status = plan(make_snapshot(experiment, children, progress=posts), NOON).status
    assert status is not None
    stored = status.to_dict()
    assert refusals(experiment_object(raw_spec(), "fusion") | {"status": stored}) == []
    assert all(abs(number) < 2**63 for number in integers(stored))
    assert read_status(json.loads(json.dumps(stored))) == status, "it would be written again and again"


def test_forged_estimates_freeze_nothing() -> None:
    """Two of 1e308 seconds add up to infinity, which no integer holds."""
    experiment = make_experiment()
    stages = ("sample/qwen", "sample/yi")
    children = [make_child(experiment, "prepare", ChildState.SUCCEEDED), *(make_child(experiment, at) for at in stages)]
    posts = {(stage, 1): (ProgressFact(1.0, 1e308, {}, NOON),) for stage in stages}
    status = plan(make_snapshot(experiment, children, progress=posts), NOON).status
    assert status is not None
    assert status.progress is not None
    assert status.progress.remaining_seconds == MAX_REMAINING_S
    assert {stage.remaining_seconds for stage in status.stages if stage.name in stages} == {MAX_REMAINING_S}


def test_a_replica_that_stands_by_sends_posts_elsewhere(world: World) -> None:
    world.leading = False
    assert world.post({}) == [(503, "this replica is a standby")]
    assert world.kube.reviews == []
