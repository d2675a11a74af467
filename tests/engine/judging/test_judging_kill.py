"""A judge stage killed twenty times: the same bytes, and no question asked twice beyond those in flight."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from forked_stages import fork_context
from judging_support import QUESTIONS, MakeJudge
from support.patience import LIMIT_S, wait_until
from support.stub_judge import StubJudge

from wrpo_engine.artifacts.manifest import Manifest

KILLS = 20


def run_stage(config: str, environ: dict[str, str], log: str) -> None:
    """The process's whole life is that of `wrpo-engine judge --config FILE`, with the tiny protocol."""
    os.environ.update(environ)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from judging_tiny import tiny_protocol_of

    from wrpo_engine.__main__ import main
    from wrpo_engine.judging import cell

    cell.protocol_of = tiny_protocol_of
    main(["judge", "--config", config])


def content(directory: Path) -> dict[str, bytes]:
    manifest = Manifest.model_validate_json((directory / "manifest.json").read_bytes())
    files = {entry.name: (directory / entry.name).read_bytes() for entry in manifest.files}
    return files | {"manifest": manifest.model_dump_json(exclude={"created_at"}).encode()}


class Gate:
    """Holds back request number `point` and later ones, so that the process can be killed at exactly that request."""

    def __init__(self, judge: StubJudge) -> None:
        self.judge = judge
        self.point = 0
        self.reached = threading.Event()
        self.opened = threading.Event()
        judge.on_request = self.pass_through

    def pass_through(self, number: int) -> None:
        if number >= self.point:
            self.reached.set()
            self.opened.wait(LIMIT_S)

    def hold_at(self, point: int) -> None:
        self.opened.set()
        self.point, self.reached, self.opened = point, threading.Event(), threading.Event()


@pytest.fixture
def start(make_judge: MakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """Starts an attempt with a number of requests in flight, and the artifact's directory."""
    environ = {"WRPO_VOLUME_ROOT": str(tmp_path / "storage"), "HOME": str(tmp_path)}
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
    context = fork_context()

    def begin(concurrency: int) -> BaseProcess:
        ctx = make_judge(runtime={"judge_concurrency": concurrency})
        config = tmp_path / "judge.json"
        config.write_text(ctx.config.model_dump_json())
        process = context.Process(target=run_stage, args=(str(config), environ, str(tmp_path / "log")))
        process.start()
        return process

    return begin, make_judge().output.directory


@pytest.mark.parametrize("concurrency", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stage_killed_at_twenty_requests_asks_each_question_once_but_those_in_flight(
    start: tuple[Any, Path], judge: StubJudge, tmp_path: Path, concurrency: int
) -> None:
    begin, directory = start

    def whole() -> dict[str, bytes]:
        process = begin(concurrency)
        process.join(LIMIT_S)
        assert process.exitcode == 0, (tmp_path / "log").read_text()[-3000:]
        return content(directory)

    undisturbed = whole()
    shutil.rmtree(directory)
    judge.asked.clear()
    judge.answered.clear()
    gate = Gate(judge)
    draw = random.Random(20)
    for _ in range(KILLS):
        gate.hold_at(len(judge.bodies) + draw.randint(0, 3))
        process = begin(concurrency)
        wait_until("the request", gate.reached.is_set, every_s=0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.join(LIMIT_S)
        assert process.exitcode == -signal.SIGKILL
    assert not (directory / "manifest.json").exists()
    gate.hold_at(sys.maxsize)
    assert whole() == undisturbed
    assert len(judge.asked) == QUESTIONS
    repeated = sum(judge.asked.values()) - QUESTIONS
    # With one request at a time it is exactly the one in flight at each kill.
    assert repeated == KILLS if concurrency == 1 else KILLS <= repeated <= KILLS * concurrency
