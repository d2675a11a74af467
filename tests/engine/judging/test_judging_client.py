"""The client of a judge: quotas, pacing, timeouts, large replies, and names of models."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from judging_support import QUESTIONS, MakeJudge
from support.stub_judge import Reply, StubJudge, completion

from wrpo_engine.contract.benchmarks import JudgeFields
from wrpo_engine.errors import ConfigError, TemporaryError
from wrpo_engine.judging.client import ChatClient, Connection, is_model
from wrpo_engine.judging.pacing import Pacer, RequestLimits
from wrpo_engine.judging.protocol import Ask, Outcome
from wrpo_engine.judging.replies import MAX_RAW_BYTES, answer_of, shortened
from wrpo_engine.judging.stage import run
from wrpo_engine.scoring.endpoint_client import RetryPolicy
from wrpo_engine.scoring.posting import key_of, retry_after

ASK = Ask(item_id="q", order=0, turn=0, messages=({"role": "user", "content": "?"},), max_tokens=1, temperature=0.0)


def client_of(
    judge: StubJudge, pacer: Pacer | None = None, *, reported_model: str | None = None, **retries: Any
) -> ChatClient:
    policy = RetryPolicy(**{"attempts": 2, "first_pause_s": 0.001, "max_pause_s": 0.002, **retries})
    connection = Connection(endpoint=judge.endpoint, retries=policy, reported_model=reported_model)
    return ChatClient(connection, JudgeFields(model="stub-judge"), pacer=pacer)


def test_waits_for_a_quota_use_up_no_attempt(judge: StubJudge) -> None:
    limited = Reply(status=429, headers={"Retry-After": "0.001"}, content="slow down")
    judge.fault = lambda number, _: limited if number < 9 else None
    found = client_of(judge).ask(ASK, "q", threading.Event())
    assert (found.reply.outcome, found.requests, len(judge.bodies)) == (Outcome.OK, 10, 10)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=429, headers={"Retry-After": "301"}, content="slow down"),
        Reply(status=429, content='{"error": {"code": "insufficient_quota"}}'),
    ],
)
def test_a_quota_that_lasts_longer_than_five_minutes_is_temporary(judge: StubJudge, reply: Reply) -> None:
    judge.fault = lambda _, __: reply
    with pytest.raises(TemporaryError, match="because of its quota for 300 s or more: HTTP 429") as error:
        client_of(judge).ask(ASK, "q", threading.Event())
    assert error.value.code == "JudgeQuotaExceeded"
    assert len(judge.bodies) == 1


def test_any_reply_ends_the_time_of_a_quota() -> None:
    now = [0.0]
    pacer = Pacer(RequestLimits(quota_patience_s=10.0), monotonic=lambda: now[0])
    for _ in range(5):
        pacer.refused(8.0, 0.0, "429", is_final=False)
        now[0] += 8.0
        pacer.answered()
    pacer.refused(8.0, 0.0, "429", is_final=False)
    now[0] += 8.0
    with pytest.raises(TemporaryError):
        pacer.refused(8.0, 0.0, "429", is_final=False)


def test_requests_a_minute_are_spread_evenly() -> None:
    now = [0.0]

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            now[0] += timeout or 0.0
            return False

    pacer = Pacer(RequestLimits(per_minute=30), monotonic=lambda: now[0])
    times = []
    for _ in range(4):
        pacer.turn(Stopped())
        times.append(now[0])
    assert times == [0.0, 2.0, 4.0, 6.0]


def test_a_server_that_hangs_is_asked_again(judge: StubJudge) -> None:
    judge.fault = lambda number, _: Reply(hang=True) if number == 0 else None
    found = client_of(judge, timeout_s=0.2, attempts=50).ask(ASK, "q", threading.Event())
    assert found.reply.outcome is Outcome.OK
    assert found.requests >= 2


def test_a_quota_that_interrupts_a_stage_loses_no_reply(make_judge: MakeJudge, judge: StubJudge) -> None:
    judge.fault = lambda number, _: Reply(status=429, headers={"Retry-After": "900"}) if number == 20 else None
    with pytest.raises(TemporaryError):
        run(make_judge(runtime={"judge_concurrency": 1}))
    run(make_judge())
    assert len(judge.bodies) == QUESTIONS + 1
    assert set(judge.answered.values()) == {1}


@pytest.mark.parametrize(
    ("asked", "same", "others"),
    [
        # Hosted APIs: dated versions.
        (
            "gpt-4o",
            ["gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-20240806", ""],
            ["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4", "gpt-4o-2024-08-06-preview", "openai/gpt-4o-mini"],
        ),
        ("gpt-4", ["gpt-4-0613"], ["gpt-4-1106-preview", "gpt-4o", "gpt-4.1"]),
        ("claude-3-5-sonnet-latest", ["claude-3-5-sonnet-20241022"], ["claude-3-5-haiku-20241022"]),
        ("claude-3-5-sonnet", ["claude-3-5-sonnet@20240620"], ["claude-3-5-sonnet-v2@20241022"]),
        ("gpt-4o-2024-05-13", ["gpt-4o-2024-05-13"], ["gpt-4o-2024-08-06", "gpt-4o"]),
        # Gateways: LiteLLM reports the provider's own name, OpenRouter lower case.
        (
            "openai/gpt-4o",
            ["gpt-4o-2024-08-06", "openai/gpt-4o-2024-08-06", "openrouter/openai/gpt-4o"],
            ["azure/gpt-4o"],
        ),
        ("gpt-4o", ["openai/gpt-4o", "azure/gpt-4o-2024-08-06"], ["openai/o1"]),
        (
            "fireworks_ai/accounts/fireworks/models/llama-v3",
            ["accounts/fireworks/models/llama-v3"],
            ["models/llama-v2"],
        ),
        (
            "meta-llama/Llama-3.1-70B-Instruct",
            ["meta-llama/llama-3.1-70b-instruct"],
            ["meta-llama/Llama-3.1-8B-Instruct"],
        ),
        # vLLM serves a path, with or without a name.
        ("/models/judge", ["/models/judge", "/models/judge/", "judge"], ["/models/judge-2", "/other/judge"]),
        ("judge", ["/models/judge"], ["/judge/model"]),
        # Azure: names of deployments say nothing.
        ("prod-judge", ["prod-judge"], ["gpt-4o-2024-08-06"]),
    ],
)
def test_gateways_report_the_name_of_a_model_with_a_provider_a_path_or_a_date(
    asked: str, same: list[str], others: list[str]
) -> None:
    assert [name for name in same if not is_model(asked, name)] == []
    assert [name for name in others if is_model(asked, name)] == []


def test_a_deployment_may_report_a_model_of_another_name(judge: StubJudge) -> None:
    judge.fault = lambda _, __: Reply(content=completion("m", model="gpt-4o-2024-08-06"))
    found = client_of(judge, reported_model="gpt-4o").ask(ASK, "q", threading.Event())
    assert found.reply.model == "gpt-4o-2024-08-06"
    with pytest.raises(ConfigError, match=r"model is 'stub-judge'.* as the model 'gpt-4o-2024-08-06'") as other:
        client_of(judge).ask(ASK, "q", threading.Event())
    assert other.value.hint == (
        "Set model to 'gpt-4o-2024-08-06' if that is the judge that you want, or evaluation.judges.reportedModel to it "
        "if the endpoint has it as 'stub-judge', e.g. a deployment or an alias."
    )
    with pytest.raises(ConfigError, match=r"reportedModel is 'gpt-4.1'.* as the model 'gpt-4o-2024-08-06'"):
        client_of(judge, reported_model="gpt-4.1").ask(ASK, "q", threading.Event())


def test_a_long_reply_keeps_its_begin_and_its_end(judge: StubJudge) -> None:
    text = "[[1]]" + "é" * MAX_RAW_BYTES + "[[7]]"
    judge.fault = lambda _, __: Reply(content=completion(text))
    kept = client_of(judge).ask(ASK, "q", threading.Event()).reply.content
    assert len(kept.encode()) <= MAX_RAW_BYTES
    assert (kept[:5], kept[-5:]) == ("[[1]]", "[[7]]")
    assert "bytes left out" in kept
    assert shortened("short") == "short"


def test_thoughts_are_left_out_of_what_is_read() -> None:
    assert answer_of("<think>[[3]]</think>\n\n[[5]]") == "[[5]]"
    assert answer_of("thoughts of a template that opens them</think>m") == "m"
    assert answer_of("<think>cut") == ""
    assert answer_of("m") == "m"


def test_a_key_from_a_file_is_sent_without_its_line_break_and_no_other_one_is_shown() -> None:
    assert key_of({"KEY": " sk-secret\n"}, "KEY", code="Code") == "sk-secret"
    assert key_of({"KEY": "\n"}, "KEY", code="Code") is key_of({}, "KEY", code="Code") is None
    for key in ("sk-secret\nsk-second", "sk-\x00secret", "sk-sécret"):
        with pytest.raises(ConfigError, match="KEY is '<hidden>': it has characters that no HTTP header can") as error:
            key_of({"KEY": key}, "KEY", code="Code")
        assert "cret" not in f"{error.value} {error.value.hint}".replace("Secret", "")


def test_retry_after_is_a_number_or_a_date() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert retry_after({"Retry-After": "1.5"}) == 1.5
    assert retry_after({"Retry-After": "Thu, 01 Jan 2026 12:00:30 GMT"}, lambda: noon) == 30.0
    assert retry_after({"Retry-After": "Thu, 01 Jan 2026 11:00:00 GMT"}, lambda: noon) == 0.0
    assert retry_after({"Retry-After": "soon"}) is retry_after({"Retry-After": "nan"}) is retry_after({}) is None
