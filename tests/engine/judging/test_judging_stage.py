"""The judge stage against a stub server: outcomes, faults, limits, and resumption."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from judging_support import NUM_ITEMS, QUESTIONS, SETTLED, MakeJudge, answers_frame, bench_files
from kill_points import states_after_kills
from support import stub_judge
from support.patience import LIMIT_S
from support.stub_judge import Body, Reply, StubJudge, completion

from wrpo_engine.artifacts.manifest import Manifest
from wrpo_engine.errors import ConfigError, DataError, Interrupted, TemporaryError, WrpoError
from wrpo_engine.judging.stage import run
from wrpo_engine.stage import StageContext, StopRequest


def content(ctx: StageContext) -> dict[str, bytes]:
    """The bytes of every file of the artifact; of the manifest all but the hour."""
    directory = ctx.output.directory
    manifest = Manifest.model_validate_json((directory / "manifest.json").read_bytes())
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert found == {entry.name for entry in manifest.files} | {"manifest.json"}
    files = {entry.name: (directory / entry.name).read_bytes() for entry in manifest.files}
    return files | {"manifest": manifest.model_dump_json(exclude={"created_at"}).encode()}


def verdicts(ctx: StageContext) -> pl.DataFrame:
    return pl.read_parquet(sorted((ctx.output.directory / "parts").glob("*.parquet")))


def test_a_stage_asks_every_question_once_and_keeps_replies_and_scores(make_judge: MakeJudge, judge: StubJudge) -> None:
    # The first one is asked alone; then four have to be in flight at once.
    together = threading.Barrier(4)

    def wait_for_four(number: int) -> None:
        if 1 <= number <= 4:
            together.wait(LIMIT_S)

    judge.on_request = wait_for_four
    ctx = make_judge(runtime={"judge_concurrency": 4})
    result = run(ctx)
    assert result.rows == QUESTIONS
    assert sum(judge.asked.values()) == len(judge.asked) == QUESTIONS
    assert judge.most_active == 4
    assert judge.connections <= 4
    body = judge.bodies[0]
    assert body.keys() == {"model", "messages", "max_tokens", "temperature", "top_p", "logprobs", "top_logprobs"}
    rows = verdicts(ctx)
    assert rows.height == QUESTIONS
    assert rows["outcome"].unique().to_list() == ["ok"]
    assert rows["attempts"].unique().to_list() == [1]
    metrics = result.metrics
    assert (metrics["questions"], metrics["ok"], metrics["invalid_share"]) == (QUESTIONS, QUESTIONS, 0.0)
    assert metrics["prompt_tokens"] == 10 * QUESTIONS
    assert metrics["latency_p50_ms"] > 0
    committed = ctx.output.committed()
    assert committed is not None
    assert "latency_p50_ms" not in committed.manifest.metrics
    outcomes = pl.read_parquet(ctx.output.directory / "outcomes.parquet")
    assert outcomes.height == NUM_ITEMS
    assert metrics["win_rate"] == pytest.approx(100 * statistics.mean(outcomes["value"]))
    benchmark = json.loads((ctx.output.directory / "benchmark.json").read_text())
    assert benchmark["judge"]["reported"] == ["stub-judge"]
    assert benchmark["judge"]["protocol"] == "Logprobs"
    assert benchmark["metrics"]["win_rate"] == metrics["win_rate"]
    assert benchmark["inputs"].keys() == {"bench/tiny", "answers/moa--tiny"}
    annotations = json.loads((ctx.output.directory / "native/annotations.json").read_text())
    assert len(annotations) == QUESTIONS + 2 * SETTLED


def test_auto_reads_the_text_of_a_judge_without_log_probabilities_and_decides_once(
    make_judge: MakeJudge, judge: StubJudge
) -> None:
    judge.fault = stub_judge.no_logprobs
    ctx = make_judge()
    run(ctx)
    # The first reply's text is used; it is not asked for again.
    assert sum(judge.asked.values()) == len(judge.asked) == QUESTIONS
    assert ["logprobs" in body for body in judge.bodies].count(True) == 1
    assert set(verdicts(ctx)["value"].unique()) == {0.0, 1.0}
    assert json.loads((ctx.output.directory / "protocol.json").read_text()) == {"protocol": "Text"}
    assert json.loads((ctx.output.directory / "benchmark.json").read_text())["judge"]["protocol"] == "Text"


def test_auto_reads_the_text_of_a_judge_that_refuses_log_probabilities(make_judge: MakeJudge, judge: StubJudge) -> None:
    def refuse(_: int, body: Body) -> Reply | None:
        if "logprobs" in body:
            return Reply(status=400, content={"error": {"message": "logprobs are not supported by this model"}})
        return None

    judge.fault = refuse
    ctx = make_judge()
    run(ctx)
    assert len(judge.bodies) == QUESTIONS + 1
    assert json.loads((ctx.output.directory / "protocol.json").read_text()) == {"protocol": "Text"}


def test_a_stopped_stage_follows_the_protocol_that_it_has_decided(make_judge: MakeJudge, judge: StubJudge) -> None:
    judge.fault = lambda number, body: stub_judge.no_logprobs(number, body) if number < 5 else None
    stop = StopRequest()
    judge.on_request = lambda number: stop.request() if number == 20 else None
    with pytest.raises(Interrupted):
        run(make_judge(stop=stop, runtime={"judge_concurrency": 2}))
    judge.on_request = lambda _: None
    run(make_judge())
    assert ["logprobs" in body for body in judge.bodies].count(True) == 1
    assert sum(judge.asked.values()) == len(judge.asked) == QUESTIONS


def test_auto_that_was_killed_before_its_decision_was_recorded_asks_nothing_again(
    make_judge: MakeJudge, judge: StubJudge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge.fault = stub_judge.no_logprobs
    directory = make_judge().output.directory
    states = states_after_kills(monkeypatch, directory, tmp_path, lambda: run(make_judge()))
    undecided = [state for state in states if not (state / "protocol.json").exists()]
    assert undecided
    for state in undecided:
        shutil.rmtree(directory)
        shutil.copytree(state, directory)
        judge.bodies.clear()
        run(make_judge())
        # The reply that decides is in the journal.
        assert len(judge.bodies) == QUESTIONS - 1
        assert not any("logprobs" in body for body in judge.bodies)


def test_auto_recalls_its_decision_from_kept_replies_without_a_judge(make_judge: MakeJudge, judge: StubJudge) -> None:
    judge.fault = stub_judge.no_logprobs
    stop = StopRequest()
    judge.on_request = lambda number: stop.request() if number == QUESTIONS - 1 else None
    with pytest.raises(Interrupted):
        run(ctx := make_judge(stop=stop))
    (ctx.output.directory / "protocol.json").unlink()
    result = run(make_judge(runtime={"judge_endpoint": None}))
    assert result.metrics["ok"] == len(judge.bodies) == QUESTIONS
    assert json.loads((ctx.output.directory / "protocol.json").read_text()) == {"protocol": "Text"}


def test_a_stage_stopped_at_any_request_asks_nothing_twice_and_ends_with_the_same_bytes(
    make_judge: MakeJudge, judge: StubJudge
) -> None:
    run(ctx := make_judge())
    undisturbed = content(ctx)
    shutil.rmtree(ctx.output.directory)
    judge.asked.clear()
    stops = 0
    while not (ctx.output.directory / "manifest.json").exists():
        stop = StopRequest()
        judge.on_request = stop_at(len(judge.bodies) + 1, stop)
        with contextlib.suppress(Interrupted):
            run(make_judge(stop=stop, runtime={"judge_concurrency": 2}))
        stops += 1
    assert stops > 3
    assert sum(judge.asked.values()) == len(judge.asked) == QUESTIONS
    assert content(ctx) == undisturbed


def stop_at(point: int, stop: StopRequest) -> Callable[[int], None]:
    return lambda number: stop.request() if number >= point else None


@pytest.mark.parametrize(
    ("fault", "outcome", "protocol"),
    [
        (stub_judge.verdict_missing, "unparsable", "Auto"),
        (stub_judge.verdict_missing, "unparsable", "Text"),
        (stub_judge.two_verdicts, "unparsable", "Text"),
        (stub_judge.token_m_with_space, "unparsable", "Logprobs"),
        (stub_judge.nan, "unparsable", "Logprobs"),
        (stub_judge.no_logprobs, "unparsable", "Logprobs"),
        (stub_judge.too_long, "too_long", "Auto"),
        (lambda _, __: Reply(status=413, content="Payload Too Large"), "too_long", "Text"),
        (lambda _, __: Reply(content=completion(None, refusal="I must not.")), "refused", "Text"),
        (lambda _, __: Reply(content=completion("", finish_reason="content_filter")), "refused", "Text"),
        (lambda _, __: Reply(status=400, content='{"error": {"code": "content_filter"}}'), "refused", "Text"),
        (
            lambda _, __: Reply(content=completion("<think>still thinking", finish_reason="length")),
            "unparsable",
            "Text",
        ),
    ],
)
def test_verdicts_that_cannot_be_read_are_counted_and_too_many_of_them_end_the_stage(
    make_judge: MakeJudge, judge: StubJudge, fault: Any, outcome: str, protocol: str
) -> None:
    judge.fault = lambda number, body: fault(number, body) if "question q7" in json.dumps(body) else None
    result = run(ctx := make_judge(protocol=protocol, runtime={"judge_max_invalid_share": 0.03}))
    assert result.metrics[outcome] == 2
    assert result.metrics["invalid_share"] == pytest.approx(2 / QUESTIONS)
    bad = verdicts(ctx).filter(pl.col("outcome") != "ok")
    assert bad["outcome"].to_list() == [outcome, outcome]
    assert bad["item_id"].to_list() == ["q7", "q7"]
    assert bad["value"].null_count() == 2
    with pytest.raises(DataError) as error:
        run(make_judge(protocol=protocol, hash_="2" * 16))
    assert error.value.code == "InvalidVerdicts"
    assert error.value.message.startswith(
        f"2 of {QUESTIONS} questions have no valid verdict (2.7%; {QUESTIONS - 2} ok, "
    )
    assert f"2 {outcome}" in error.value.message
    assert "more than maxInvalidShare 0.02; e.g. item q7, order" in error.value.message
    assert error.value.hint is not None
    assert "judge/moa--tiny--stub/2222222222222222/parts" in error.value.hint
    asked = len(judge.bodies)
    with pytest.raises(DataError):
        run(make_judge(protocol=protocol, hash_="2" * 16))
    # A higher limit commits the replies that are there.
    result = run(make_judge(protocol=protocol, hash_="2" * 16, runtime={"judge_max_invalid_share": 0.03}))
    assert result.metrics[outcome] == 2
    assert len(judge.bodies) == asked


def test_thoughts_before_the_verdict_are_left_out_and_kept_raw(make_judge: MakeJudge, judge: StubJudge) -> None:
    judge.fault = stub_judge.thinking_first
    run(ctx := make_judge(protocol="Text"))
    rows = verdicts(ctx)
    assert rows["outcome"].unique().to_list() == ["ok"]
    assert set(rows["verdict"]) == {"m", "M"}
    assert json.loads(rows["raw"][0])[0]["content"].startswith("<think>M is long. m?</think>")


def test_a_judge_that_gives_no_verdict_is_asked_once_more_and_both_replies_are_kept(
    make_judge: MakeJudge, judge: StubJudge
) -> None:
    judge.fault = lambda _, body: Reply(content=completion("hm")) if len(body["messages"]) == 1 else None
    result = run(ctx := make_judge(protocol="Text"))
    assert result.metrics["ok"] == QUESTIONS
    assert result.metrics["requests"] == len(judge.bodies) == 2 * QUESTIONS
    assert [len(json.loads(raw)) for raw in verdicts(ctx)["raw"]] == [2] * QUESTIONS


def test_a_question_that_the_judge_never_answers_fails_while_others_are_answered(
    make_judge: MakeJudge, judge: StubJudge, quick: None
) -> None:
    judge.fault = lambda _, body: Reply(status=500, content="boom") if "question q7" in json.dumps(body) else None
    result = run(ctx := make_judge(runtime={"judge_max_invalid_share": 0.1}))
    assert result.metrics["failed"] == 2
    assert "HTTP 500 boom" in verdicts(ctx).filter(pl.col("outcome") == "failed")["raw"][0]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from wrpo_engine.judging import client
    from wrpo_engine.scoring.endpoint_client import RetryPolicy

    monkeypatch.setattr(client, "_RETRIES", RetryPolicy(attempts=3, first_pause_s=0.001, max_pause_s=0.01))


def test_a_judge_that_cannot_be_reached_is_temporary_and_loses_no_reply(
    make_judge: MakeJudge, judge: StubJudge, quick: None
) -> None:
    judge.fault = lambda number, _: Reply(cut=True, content=completion("m")) if number >= 10 else None
    judge.is_down = True
    with pytest.raises(TemporaryError) as error:
        run(make_judge(runtime={"judge_concurrency": 1}))
    assert error.value.code == "JudgeUnreachable"
    assert f"the judge {judge.endpoint} gave no reply to item q" in error.value.message
    assert "in 3 attempts" in error.value.message
    judge.fault = lambda _, __: None
    run(make_judge())
    assert set(judge.answered.values()) == {1}
    assert len(judge.answered) == QUESTIONS


FINAL: list[tuple[Any, str, str]] = [
    (Reply(status=401, content="bad key sk-secret"), "JudgeForbidden", "the judge refuses the key with HTTP 401"),
    (Reply(status=403, content=""), "JudgeForbidden", "the judge refuses the key with HTTP 403"),
    (stub_judge.wrong_model(0, {}), "JudgeModelNotFound", "The model `stub-judge` does not exist"),
    (
        Reply(content=completion("m", model="other-judge")),
        "JudgeModelMismatch",
        "evaluation.judges.model is 'stub-judge': the judge {endpoint} answers as the model 'other-judge'",
    ),
    (
        Reply(status=400, content="temperature must be 1, key sk-secret"),
        "JudgeRefused",
        "with HTTP 400: temperature must be 1, key ***",
    ),
    (Reply(status=307, headers={"Location": "http://127.0.0.1:1/v1"}), "JudgeRefused", "is redirected with HTTP 307"),
]


def test_errors_name_the_judge_of_the_experiment(make_judge: MakeJudge, judge: StubJudge, quick: None) -> None:
    def error_of(reply: Reply | None = None, runtime: dict[str, Any] | None = None, **params: Any) -> WrpoError:
        judge.fault = lambda _, __: reply
        named = {"model_sections": {"model": "evaluation.judges[gpt4]"}, **(runtime or {})}
        with pytest.raises(WrpoError) as error:
            run(make_judge(runtime=named, **params))
        return error.value

    unusable = Reply(content=completion("neither"))
    judge.is_down = True
    fields = {
        "endpoint": [
            error_of(Reply(status=401)),
            error_of(Reply(status=429, headers={"Retry-After": "900"})),
            error_of(Reply(cut=True, content=completion("m"))),
            error_of(runtime={"judge_endpoint": None}),
        ],
        "model": [error_of(stub_judge.wrong_model(0, {})), error_of(Reply(content=completion("m", model="other")))],
        "extraBody": [error_of(extra_body={"n": 2})],
        "maxRequests": [error_of(runtime={"judge_max_requests": 1}, protocol="Text")],
        "maxInvalidShare": [error_of(unusable, protocol="Text")],
    }
    found = {name: [error.field for error in errors] for name, errors in fields.items()}
    assert found == {name: [f"evaluation.judges[gpt4].{name}"] * len(errors) for name, errors in fields.items()}


@pytest.mark.parametrize(("reply", "code", "text"), FINAL)
def test_what_concerns_all_questions_ends_the_stage_at_once(
    make_judge: MakeJudge, judge: StubJudge, reply: Reply, code: str, text: str
) -> None:
    judge.fault = lambda _, __: reply
    with pytest.raises(ConfigError) as error:
        run(make_judge(environ={"WRPO_JUDGE_API_KEY": "sk-secret"}, runtime={"judge_concurrency": 1}))
    assert error.value.code == code
    assert text.format(endpoint=judge.endpoint) in error.value.message
    assert "sk-secret" not in f"{error.value.message} {error.value.hint}"
    assert len(judge.bodies) == 1
    assert judge.keys == {"Bearer sk-secret"}


def test_a_reply_that_repeats_the_key_is_kept_without_it(make_judge: MakeJudge, judge: StubJudge) -> None:
    judge.fault = lambda _, body: Reply(content=completion(f"key {judge.keys} m", reasoning_content="sk-secret"))
    run(
        ctx := make_judge(
            protocol="Text", runtime={"judge_max_invalid_share": 1.0}, environ={"WRPO_JUDGE_API_KEY": "sk-secret"}
        )
    )
    assert not any(b"sk-secret" in path.read_bytes() for path in ctx.output.directory.rglob("*") if path.is_file())
    assert "Bearer ***" in verdicts(ctx)["raw"][0]


def test_a_budget_that_cannot_suffice_ends_the_stage_before_any_request(
    make_judge: MakeJudge, judge: StubJudge
) -> None:
    with pytest.raises(ConfigError) as error:
        run(make_judge(protocol="Logprobs", runtime={"judge_max_requests": QUESTIONS - 1}))
    assert error.value.message == (
        f"evaluation.judges.maxRequests is {QUESTIONS - 1}: 0 requests were sent and at least {QUESTIONS} more are "
        "needed"
    )
    assert error.value.code == "JudgeBudgetExceeded"
    assert judge.bodies == []


def test_a_budget_counts_retries_and_earlier_attempts_and_is_never_exceeded(
    make_judge: MakeJudge, judge: StubJudge, quick: None
) -> None:
    judge.fault = lambda number, _: Reply(status=500, content="") if number % 10 == 5 else None
    limit = QUESTIONS + 3
    with pytest.raises(ConfigError, match=f"{limit} requests were sent and at least 1 more are needed") as error:
        run(make_judge(runtime={"judge_max_requests": limit}))
    assert error.value.code == "JudgeBudgetExceeded"
    assert len(judge.bodies) == limit
    with pytest.raises(ConfigError, match=f"{limit} requests were sent"):
        run(make_judge(runtime={"judge_max_requests": limit}))
    assert len(judge.bodies) == limit
    run(make_judge(runtime={"judge_max_requests": 2 * QUESTIONS}))
    assert set(judge.answered.values()) == {1}


def test_answers_of_another_benchmark_are_refused(
    make_judge: MakeJudge, cell_inputs: Any, commit_artifact: Any
) -> None:
    def refused(names: list[str], answers: dict[str, str]) -> WrpoError:
        number = len(names)
        inputs = {
            "bench/tiny": commit_artifact(f"bench/n{number}", bench_files(names)),
            "answers/moa--tiny": commit_artifact(
                f"answer/n{number}", {"parts/part-00000.parquet": answers_frame(answers)}
            ),
        }
        with pytest.raises(DataError) as error:
            run(make_judge(inputs=inputs))
        return error.value

    missing = refused(["a", "b"], {"a": "x"})
    assert missing.message == (
        "answer/n2/0123456789abcdef (answers/moa--tiny) has 0 answers to item b, which has 1 turns"
    )
    unknown = refused(["a"], {"a": "x", "z": "y"})
    assert unknown.message == (
        "answer/n1/0123456789abcdef (answers/moa--tiny) answers item z, which the benchmark does not have (1 such "
        "items)"
    )
    assert refused([], {}).message == "the benchmark has no items"


def test_a_judge_needs_an_endpoint_or_a_model_of_its_own(make_judge: MakeJudge) -> None:
    with pytest.raises(ConfigError) as error:
        run(make_judge(runtime={"judge_endpoint": None}))
    assert error.value.message == (
        "evaluation.judges.endpoint is 'not set': the judge stub-judge has neither an endpoint nor a model that the "
        "stage serves"
    )


def test_a_field_of_extra_body_is_sent_and_null_removes_the_own_one(make_judge: MakeJudge, judge: StubJudge) -> None:
    run(make_judge(extra_body={"max_tokens": None, "max_completion_tokens": 9, "top_p": 0.5}))
    assert "max_tokens" not in judge.bodies[0]
    assert (judge.bodies[0]["max_completion_tokens"], judge.bodies[0]["top_p"]) == (9, 0.5)
    with pytest.raises(ConfigError, match="extraBody is 'messages': the stage sets this field itself"):
        run(make_judge(extra_body={"messages": []}, hash_="3" * 16))


def test_journals_of_attempts_that_were_killed_are_read_and_a_torn_line_is_asked_again(
    make_judge: MakeJudge, judge: StubJudge, tmp_path: Path
) -> None:
    stop = StopRequest()
    judge.on_request = lambda number: stop.request() if number == 9 else None
    with pytest.raises(Interrupted):
        run(ctx := make_judge(stop=stop, runtime={"judge_concurrency": 1}))
    (journal,) = (ctx.output.directory / "journal").glob("*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    before = len(judge.bodies)
    judge.on_request = lambda _: None
    run(make_judge())
    assert len(judge.bodies) == before + QUESTIONS - len(lines) + 1
