"""Replies of judges that break the form: what is read of them, and that none is asked for twice because of it."""

from __future__ import annotations

import gzip
import json
import math
import threading
from typing import Any

import pytest
from judging_support import QUESTIONS, MakeJudge
from support.stub_judge import Reply, StubJudge, completion

from wrpo_engine.contract.benchmarks import JudgeFields
from wrpo_engine.errors import ConfigError, TemporaryError
from wrpo_engine.judging.client import ChatClient, Connection
from wrpo_engine.judging.protocol import Ask, Outcome
from wrpo_engine.judging.replies import KeptReply, UnusableReply, error_status, from_raw, read_completion, to_raw
from wrpo_engine.judging.stage import run
from wrpo_engine.scoring.endpoint_client import RetryPolicy

HALF = "\ud83d"
TOKEN = {"token": "m", "logprob": -1.0}


def body_of(*, message: Any = None, choice: dict[str, Any] | None = None, **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": message or {"content": "m"}, **(choice or {})}], **more}).encode()


def top(*alternatives: Any) -> bytes:
    return body_of(choice={"logprobs": {"content": [{**TOKEN, "top_logprobs": list(alternatives)}]}})


ODD: dict[str, tuple[bytes, dict[str, Any]]] = {
    "byte order mark": (b"\xef\xbb\xbf" + body_of(), {}),
    "UTF-16": (body_of().decode().encode("utf-16"), {}),
    "CRLF": (body_of(message={"content": "m\r\n"}), {"content": "m\r\n"}),
    "half of a pair in the text": (body_of(message={"content": f"m{HALF}"}), {"content": "m\\ud83d"}),
    "half of a pair in finish_reason": (body_of(choice={"finish_reason": HALF}), {"finish_reason": "\\ud83d"}),
    "half of a pair in the model": (body_of(model=HALF), {"model": "\\ud83d"}),
    "finish_reason is a number": (body_of(choice={"finish_reason": 1}), {}),
    "usage is missing": (body_of(usage=None), {}),
    "usage is a list": (body_of(usage=[1]), {}),
    "usage is a text": (body_of(usage="12 tokens"), {}),
    "1e308 tokens": (body_of(usage={"prompt_tokens": 1e308, "completion_tokens": 2}), {"completion_tokens": 2}),
    "10^30 tokens": (body_of(usage={"prompt_tokens": 10**30}), {}),
    "-5 tokens": (body_of(usage={"prompt_tokens": -5, "completion_tokens": True}), {}),
    "parts": (body_of(message={"content": [{"type": "text", "text": "m"}, {"type": "image_url"}]}), {}),
    "parts are texts": (body_of(message={"content": ["m"]}), {}),
    "parts that think": (
        body_of(message={"content": [{"type": "thinking", "thinking": "M"}, {"type": "text", "text": "m"}]}),
        {},
    ),
    "a part without text": (body_of(message={"content": [{"type": "text"}, {"type": "text", "text": "m"}]}), {}),
    "tool calls": (body_of(message={"content": None, "tool_calls": [{"id": "1"}]}), {"content": ""}),
    "refusal is true": (body_of(message={"content": None, "refusal": True}), {"content": "", "is_refusal": True}),
    "a refusal is a part": (
        body_of(message={"content": [{"type": "refusal", "refusal": "No."}]}),
        {"content": "No.", "is_refusal": True},
    ),
    "reasoning is an object": (body_of(message={"content": "m", "reasoning": {"effort": 1}}), {}),
    "logprobs is a list": (body_of(choice={"logprobs": [1]}), {}),
    "logprobs of a text": (body_of(choice={"logprobs": {"content": "m"}}), {}),
    "logprobs of nothing": (body_of(choice={"logprobs": {"content": [None]}}), {}),
    "logprobs of completions": (body_of(choice={"logprobs": {"tokens": ["m"], "token_logprobs": [-1]}}), {}),
    "alternatives are empty": (top(), {"logprobs": {"m": -1.0}}),
    "an alternative is null": (top(None, TOKEN), {"logprobs": {"m": -1.0}}),
    "half of a pair is a token": (top(TOKEN, {**TOKEN, "token": HALF}), {"logprobs": {"m": -1.0, "\\ud83d": -1.0}}),
    "an alternative has no number": (top(TOKEN, {"token": "M", "logprob": None}), {"logprobs": {"m": -1.0}}),
    **{
        f"a log probability is {str(value)[:8]}": (top(TOKEN, {"token": "M", "logprob": value}), {"logprobs": {}})
        for value in (math.nan, math.inf, 1e308, 10**400, 0.5, True, "-1")
    },
    "minus infinity": (
        top(*({"token": token, "logprob": value} for token, value in (("m", -math.inf), ("M", -(10**400))))),
        {"logprobs": {"m": -9999.0, "M": -9999.0}},
    ),
}


@pytest.mark.parametrize(("body", "expected"), ODD.values(), ids=ODD.keys())
def test_a_reply_with_a_text_is_read_whatever_is_beside_it_and_can_be_kept(
    body: bytes, expected: dict[str, Any]
) -> None:
    reply = read_completion(body, has_logprobs=True)
    assert reply == KeptReply(**{"content": "m", "finish_reason": "", **expected})
    raw = to_raw([reply])
    assert from_raw(raw.encode().decode()) == [reply]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>", b"5", b"[]", b"{}", b"[" * 200_000, b"\xff\xfe\x00"),
        *(b'{"choices": []}', b'{"choices": null}', b'{"choices": [{}]}', b'{"error": "busy"}'),
        b'{"choices": [{"message": {"content": 7}}]}',
    ],
)
def test_what_is_no_chat_completion_is_unusable_and_shown(body: bytes) -> None:
    with pytest.raises(UnusableReply, match="the reply is not a chat completion: "):
        read_completion(body, has_logprobs=True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"code": 429, "message": "slow down"}}, 429),
        ({"error": {"code": "503"}}, 503),
        ({"choices": [{"message": {"content": ""}, "error": {"code": 502}}]}, 502),
        ({"error": {"code": "insufficient_quota"}}, None),
        ({"error": {"code": 200}}, None),
        ({"error": {"code": 10**30}}, None),
        ({"error": None, "choices": []}, None),
        ({"error": "busy"}, None),
        (["error"], None),
    ],
)
def test_an_error_in_the_body_of_a_reply_has_the_status_that_it_names(body: Any, status: int | None) -> None:
    assert error_status(json.dumps(body).encode()) == status


ASK = Ask(item_id="q", order=0, turn=0, messages=({"role": "user", "content": "?"},), max_tokens=1, temperature=0.0)
ZIPPED = gzip.compress(json.dumps(completion("m")).encode())


@pytest.mark.parametrize(
    ("reply", "outcome", "requests"),
    [
        (Reply(content=ZIPPED, headers={"Content-Encoding": "gzip"}), Outcome.OK, 1),
        (Reply(content=ZIPPED[: len(ZIPPED) // 2], headers={"Content-Encoding": "gzip"}), Outcome.FAILED, 2),
        (Reply(content=b"zz\r\nm\r\n", headers={"Transfer-Encoding": "chunked"}), Outcome.FAILED, 2),
        (Reply(status=204), Outcome.FAILED, 2),
        (Reply(content={"error": {"code": 503, "message": "overloaded"}}), Outcome.FAILED, 2),
        (Reply(content={"error": {"code": 400, "message": "context length exceeded"}}), Outcome.TOO_LONG, 1),
    ],
)
def test_a_reply_that_cannot_be_read_is_asked_for_again_and_one_that_can_is_not(
    judge: StubJudge, reply: Reply, outcome: Outcome, requests: int
) -> None:
    judge.fault = lambda _, __: reply
    policy = RetryPolicy(attempts=2, first_pause_s=0.001, max_pause_s=0.002)
    client = ChatClient(Connection(endpoint=judge.endpoint, retries=policy), JudgeFields(model="stub-judge"))
    found = client.ask(ASK, "q", threading.Event())
    assert (found.reply.outcome, found.requests, len(judge.bodies)) == (outcome, requests, requests)


def test_a_gateways_200_with_a_refused_key_or_a_quota_ends_the_stage_like_its_status(
    make_judge: MakeJudge, judge: StubJudge
) -> None:
    judge.fault = lambda _, __: Reply(content={"error": {"code": 401, "message": "no such key"}})
    with pytest.raises(ConfigError, match="the judge refuses the key with HTTP 401"):
        run(make_judge(runtime={"judge_concurrency": 1}))
    judge.fault = lambda _, __: Reply(content={"error": {"code": 429, "message": "insufficient_quota"}})
    with pytest.raises(TemporaryError, match="because of its quota"):
        run(make_judge(runtime={"judge_concurrency": 1}))
    assert len(judge.bodies) == 2


def test_replies_with_odd_fields_are_kept_in_the_artifact_and_none_is_asked_for_twice(
    make_judge: MakeJudge, judge: StubJudge
) -> None:
    odd = completion("m", logprobs={"m": -0.1, HALF: -3.0}, finish_reason=HALF) | {"usage": {"prompt_tokens": 10**30}}
    judge.fault = lambda _, __: Reply(content=odd)
    result = run(make_judge())
    assert result.metrics["ok"] == len(judge.bodies) == QUESTIONS
    assert result.metrics["prompt_tokens"] == 0


@pytest.mark.parametrize("status", [401, 404, 400, 307])
def test_a_key_in_the_query_of_an_endpoint_is_sent_and_not_shown(judge: StubJudge, status: int) -> None:
    judge.fault = lambda _, __: Reply(status=status, content="no")
    client = ChatClient(Connection(endpoint=f"{judge.endpoint}?api-key=sk-secret"), JudgeFields(model="stub-judge"))
    with pytest.raises(ConfigError) as error:
        client.ask(ASK, "q", threading.Event())
    assert "sk-secret" not in f"{error.value.message} {error.value.hint}"
    assert judge.paths == {"/v1/chat/completions?api-key=sk-secret"}
