"""`wrpo-engine judge --plan` and `wrpo-engine reparse`: what is printed, and that no request is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judging_support import NUM_ITEMS, QUESTIONS, SETTLED, MakeJudge
from judging_tiny import TinyProtocol
from support import stub_judge
from support.stub_judge import StubJudge

from wrpo_engine.__main__ import main
from wrpo_engine.errors import Interrupted
from wrpo_engine.judging.stage import run
from wrpo_engine.stage import StageContext, StopRequest


def engine(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    code = ended.value.code
    assert isinstance(code, int)
    return code


def written(ctx: StageContext, path: Path) -> str:
    path.write_text(ctx.config.model_dump_json())
    return str(path)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WRPO_VOLUME_ROOT", str(tmp_path / "storage"))
    return tmp_path / "storage"


def files(storage: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(storage.rglob("*")) if path.is_file()}


def test_the_plan_counts_questions_and_tokens_and_sends_nothing(
    make_judge: MakeJudge, judge: StubJudge, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ctx = make_judge()
    before = files(storage)
    assert engine("judge", "--plan", "--config", written(ctx, tmp_path / "judge.json")) == 0
    characters = 2 * sum(
        len(f"question q{number}\nm: base q{number}\nM: mine q{number}") for number in range(SETTLED, NUM_ITEMS)
    )
    asked, settled, tokens = QUESTIONS, 2 * SETTLED, -(-characters // 4)
    assert capsys.readouterr().out.splitlines() == [
        f"judge stub-judge: {asked} questions, 0 of them answered before, {settled} verdicts without a question",
        f"requests: {asked}, with follow-ups at most {2 * asked}, retries not counted",
        f"tokens: about {tokens} of prompts (4 characters a token), at most {8 * asked} of replies to first requests",
    ]
    assert judge.bodies == []
    assert files(storage) == before


def test_the_plan_leaves_out_what_earlier_attempts_have_asked(
    make_judge: MakeJudge, judge: StubJudge, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = StopRequest()
    judge.on_request = lambda number: stop.request() if number == 40 else None
    with pytest.raises(Interrupted):
        run(make_judge(stop=stop, runtime={"judge_concurrency": 1}))
    asked = len(judge.bodies)
    path = written(make_judge(), tmp_path / "judge.json")
    assert engine("judge", "--plan", "--config", path) == 0
    assert f"{QUESTIONS} questions, {asked} of them answered before" in (found := capsys.readouterr().out)
    assert f"requests: {QUESTIONS - asked}," in found
    judge.on_request = lambda _: None
    run(make_judge())
    assert engine("judge", "--plan", "--config", path) == 0
    assert "requests: 0, with follow-ups at most 0" in capsys.readouterr().out
    assert len(judge.bodies) == QUESTIONS


def test_a_plan_of_another_stage_or_without_inputs_is_refused(
    make_judge: MakeJudge, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine("score", "--plan", "--config", "x.json") == 64
    assert "the stage score has no --plan; judge has" in capsys.readouterr().err
    path = written(make_judge(), tmp_path / "judge.json")
    (storage / "bench/tiny/0123456789abcdef/manifest.json").unlink()
    assert engine("judge", "--plan", "--config", path) == 66
    assert "input 'bench/tiny', artifact bench/tiny/0123456789abcdef, does not exist" in capsys.readouterr().err


def test_replies_are_read_again_without_a_request_and_the_artifact_stays(
    make_judge: MakeJudge,
    judge: StubJudge,
    storage: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge.fault = lambda number, body: (
        stub_judge.two_verdicts(number, body) if "question q7" in json.dumps(body) else None
    )
    result = run(ctx := make_judge(protocol="Text", runtime={"judge_max_invalid_share": 1.0}))
    asked, before = len(judge.bodies), files(storage)
    directory = str(ctx.output.directory)
    assert engine("reparse", directory) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"] == again["metrics_of_artifact"]
    assert again["metrics"].items() <= result.metrics.items()
    assert (again["mode"], again["changed_verdicts"]) == ("Strict", 0)

    # A reader that takes the last word: what the mode means is the protocol's.
    def last_word(self: TinyProtocol, reply: Any) -> float | None:
        return {"m": 1.0, "M": 0.0}.get(reply.text.split()[-1]) if self.judge.mode == "Compat" else share(self, reply)

    share = TinyProtocol._share
    monkeypatch.setattr(TinyProtocol, "_share", last_word)
    assert (
        engine("reparse", "judge/moa--tiny--stub/0123456789abcdef", "--storage", str(storage), "--mode", "Compat") == 0
    )
    compat = json.loads(capsys.readouterr().out)
    assert compat["mode"] == "Compat"
    assert compat["changed_verdicts"] == result.metrics["unparsable"] > 0
    assert (compat["metrics"]["ok"], compat["metrics"]["unparsable"]) == (QUESTIONS, 0)
    assert len(judge.bodies) == asked
    assert files(storage) == before


def test_without_a_question_to_ask_neither_the_stage_nor_a_reparse_starts_the_judges_server(
    make_judge: MakeJudge, judge: StubJudge, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stopped after the last reply: it is in the journal, and the last part is not published.
    stop = StopRequest()
    judge.on_request = lambda number: stop.request() if number == QUESTIONS - 1 else None
    with pytest.raises(Interrupted):
        run(make_judge(stop=stop))
    assert len(judge.bodies) == QUESTIONS

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a server is started")

    monkeypatch.setattr("wrpo_engine.judging.serving.running_server", start)
    own: dict[str, Any] = {"serve_reward": {"function": "math:dist"}, "runtime": {"judge_endpoint": None}}
    ctx = make_judge(**own)
    assert ctx.output.committed() is None
    assert run(ctx).metrics["ok"] == QUESTIONS
    assert engine("reparse", str(ctx.output.directory)) == 0
    assert json.loads(capsys.readouterr().out)["changed_verdicts"] == 0
    with pytest.raises(AssertionError, match="a server is started"):
        run(make_judge(hash_="2" * 16, **own))


def test_what_is_no_artifact_of_a_judge_is_refused(
    make_judge: MakeJudge, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_judge()
    assert engine("reparse", str(storage)) == 64
    assert f"error: {storage} is no artifact" in capsys.readouterr().err
    assert engine("reparse", str(storage / "bench/tiny/0123456789abcdef")) == 64
    assert "is an artifact of bench/tiny" in capsys.readouterr().err


def test_an_endpoint_with_credentials_is_refused_without_showing_them(
    make_judge: MakeJudge, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(make_judge().config.model_dump_json())
    content["runtime"]["judge_endpoint"] = "https://user:secret@host/v1"
    (tmp_path / "judge.json").write_text(json.dumps(content))
    assert engine("judge", "--config", str(tmp_path / "judge.json")) == 78
    shown = capsys.readouterr().err
    assert "runtime.judge_endpoint is 'https://***@host/v1': String should match pattern" in shown
    assert "secret" not in shown
