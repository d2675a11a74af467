"""A judge's own server that ends while it is asked: what the stage says, and what it keeps."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest
from judging_support import QUESTIONS, MakeJudge
from support.stub_judge import StubJudge

from wrpo_engine.errors import WrpoError
from wrpo_engine.exit_codes import ExitCode
from wrpo_engine.judging.own_server import Served, end_of_server
from wrpo_engine.judging.stage import run

ANSWERED = 5
SERVER = """
import http.server, json, os, signal, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answered = 0

    def do_GET(self):
        self.reply({})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if Handler.answered == int(sys.argv[2]):
            exec(sys.argv[3])
        Handler.answered += 1
        self.reply({"model": "stub-judge", "choices": [{"message": {"content": "m"}}]})

    def reply(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

print("loaded", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""Answers m to a number of questions and then does what it is told."""


@pytest.mark.parametrize(
    ("end", "code", "exit_code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "JudgeServerFailed", ExitCode.TEMPORARY, "signal 9; its last lines:"),
        (
            "print('torch.OutOfMemoryError: CUDA out of memory.', flush=True); os._exit(1)",
            "OutOfMemory",
            ExitCode.UNEXPECTED,
            "exit code 1: torch.OutOfMemoryError: CUDA out of memory.; its last lines:",
        ),
        ("os._exit(78)", "JudgeServerFailed", ExitCode.CONFIG, "exit code 78; its last lines:"),
    ],
)
def test_a_server_that_ends_under_questions_ends_the_stage_with_its_reason_and_no_reply_is_lost(
    make_judge: MakeJudge,
    judge: StubJudge,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    code: str,
    exit_code: ExitCode,
    words: str,
) -> None:
    def command(_: object, __: object, port: int) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", SERVER, str(port), str(ANSWERED), end]

    monkeypatch.setattr("wrpo_engine.judging.serving._reward_server", command)
    sections = {"model_sections": {"model": "evaluation.judges[own]"}}
    runtime: dict[str, Any] = {"judge_endpoint": None, "judge_concurrency": 1, **sections}
    with pytest.raises(WrpoError) as error:
        run(make_judge(serve_reward={"function": "math:dist"}, protocol="Text", runtime=runtime))
    assert (error.value.code, error.value.exit_code) == (code, exit_code)
    assert error.value.field == "evaluation.judges[own].serveReward"
    assert f"the judge's server ended with {words}\nloaded" in error.value.message
    run(make_judge(protocol="Text"))
    assert len(judge.bodies) == QUESTIONS - ANSWERED


SERVED = Served(field="evaluation.judges[own].serve.model", name="org/judge")
NO_MEMORY = "(EngineCore pid=7) ERROR 11-30 10:00:00 [core.py:1] ValueError: No available memory for the cache blocks."
UNUSABLE = "ValueError: Model architectures ['Foo'] are not supported for now."


@pytest.mark.parametrize(
    ("exit_", "line", "was_ready", "code", "exit_code", "words"),
    [
        (1, NO_MEMORY, False, "OutOfMemory", 1, "Request more memory or accelerators"),
        (1, UNUSABLE, False, "JudgeServerFailed", 78, "Correct the judge."),
        # It could use the model before.
        (1, UNUSABLE, True, "JudgeServerFailed", 75, "The stage is retried; replies are kept."),
        (1, "OSError: [Errno 98] Address already in use", False, "JudgeServerFailed", 75, "The stage is retried"),
        (-signal.SIGKILL, "loaded", True, "JudgeServerFailed", 75, "Signal 9 usually means that memory ran out"),
        (0, "", True, "JudgeServerFailed", 75, "The stage is retried"),
    ],
)
def test_the_end_of_a_server_is_told_by_its_exit_code_and_its_lines(
    exit_: int, line: str, was_ready: bool, code: str, exit_code: int, words: str
) -> None:
    error = end_of_server(exit_, [line], SERVED, was_ready=was_ready)
    assert (error.code, error.exit_code, error.field) == (code, exit_code, SERVED.field)
    assert words in str(error.hint)
    assert error.message.endswith(f"its last lines:\n{line}")
