"""A run that stands still ends, says where everybody was, and is retried."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_support import Experiment, Gang, make_experiment, start_ranks

from wrpo_engine.training.monitoring.callbacks import RunStart, StepEnd
from wrpo_engine.training.monitoring.watchdog import OwnBoard, Sign, Watchdog, describe

WHO = {
    "one has done less": ([Sign(5, 3, 9), Sign(5, 2, 9)], [], "rank 1 is behind (step 6, micro-batch 3)"),
    "several have": (
        [Sign(5, 0, 1), Sign(4, 7, 1), Sign(4, 7, 1)],
        [],
        "rank 1, rank 2 is behind (step 5, micro-batch 8)",
    ),
    "nobody has": ([Sign(5, 3, 9), Sign(5, 3, 9)], [], "all ranks are at the same place"),
    "one is silent": (
        [Sign(5, 3, 9), Sign(5, 3, 2)],
        [1],
        "rank 1 (step 6, micro-batch 4) gave no sign of life: stopped, or gone with its node",
    ),
    "one never reported": (
        [Sign(0, 0, 9), None],
        [1],
        "rank 1 (it never reported) gave no sign of life: stopped, or gone with its node",
    ),
}


@pytest.mark.parametrize(("signs", "silent", "text"), WHO.values(), ids=WHO.keys())
def test_it_says_who_is_late(signs: list[Sign | None], silent: list[int], text: str) -> None:
    assert describe(signs, silent) == text


def test_signs_survive_their_encoding() -> None:
    assert Sign.decode(Sign(12, 3, -1).encode()) == Sign(12, 3, -1)


class Clock:
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watchdog(clock: Clock, **changes: Any) -> Watchdog:
    return Watchdog(0, OwnBoard(), changes.pop("timeout_s", 1000.0), {}, clock=clock, **changes)


PROGRESS: dict[str, Callable[[Watchdog], None]] = {
    "a micro-batch": lambda watched: watched.on_micro_batch(4, ()),
    "a micro-batch of the reference": lambda watched: watched.beat(),
    "a step": lambda watched: watched.on_step(StepEnd(5, 10, {}, 1.0)),
    "an evaluation": lambda watched: watched.on_evaluation(5, {}),
    "a checkpoint": lambda watched: watched.on_checkpoint(5),
    "a start": lambda watched: watched.on_start(RunStart(10, 4, 100)),
}


@pytest.mark.parametrize("progress", PROGRESS.values(), ids=PROGRESS.keys())
def test_progress_keeps_it_quiet(progress: Callable[[Watchdog], None]) -> None:
    clock = Clock()
    watched = watchdog(clock, timeout_s=60)
    for _ in range(3):
        clock.now += 59
        assert watched.verdict() is None
        progress(watched)
    clock.now += 61
    assert watched.verdict() == ("Hang", 61.0, [])


def test_a_silent_peer_ends_the_wait_long_before_the_timeout() -> None:
    clock = Clock()
    watched = watchdog(clock, silence_s=120)
    for beat in range(13):
        # Rank 1's process stands still; rank 2 only computes for long; rank 3 has finished.
        watched.note([Sign(4, 1, beat), Sign(4, 1, 17), Sign(4, 1, beat), Sign(4, 1, -1)])
        assert watched.verdict() is None
        clock.now += 10
    assert watched.verdict() == ("PeerSilent", 130.0, [1])


def test_a_rank_that_gets_on_does_not_care_for_silence() -> None:
    clock = Clock()
    watched = watchdog(clock, silence_s=120)
    watched.note([None, Sign(4, 1, 17)])
    clock.now += 500
    watched.beat()
    assert watched.verdict() is None


def test_a_first_node_whose_store_does_not_answer_is_silent() -> None:
    clock = Clock()
    watched = Watchdog(1, OwnBoard(), 1000.0, {}, silence_s=120, clock=clock)
    clock.now += 119
    assert watched.verdict() is None
    clock.now += 2
    assert watched.verdict() == ("PeerSilent", 121.0, [0])
    watched.beat()
    assert watched.verdict() is None


def test_a_peer_that_never_reported_is_silent() -> None:
    clock = Clock()
    watched = watchdog(clock, silence_s=120)
    watched.note([None, None])
    clock.now += 121
    assert watched.verdict() == ("PeerSilent", 121.0, [1])


def test_no_thread_of_it_is_left_in_the_store_when_it_has_closed() -> None:
    """One that is there when the interpreter ends aborts the process."""
    posting, may_end, posted = threading.Event(), threading.Event(), []

    class SlowBoard(OwnBoard):
        def post(self, sign: Sign) -> None:
            posting.set()
            may_end.wait(10)
            posted.append(sign.beat)

    watched = Watchdog(0, SlowBoard(), 1000.0, {}).start()
    closing = threading.Thread(target=watched.close)
    closing.start()
    assert posting.wait(10)
    assert closing.is_alive()
    may_end.set()
    closing.join(10)
    assert posted == [-1]
    assert not any(thread.is_alive() for thread in watched._threads)


def test_standing_still_ends_the_process_with_stacks_and_a_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended, codes = threading.Event(), list[int]()

    def end(code: int) -> Any:
        codes.append(code)
        watched.close()
        ended.set()

    environ = {"WRPO_TERMINATION_MESSAGE_PATH": str(tmp_path / "message")}
    watched = Watchdog(0, OwnBoard(), 0.3, environ, end=end).start()
    watched.on_start(RunStart(10, 4, 100))
    assert ended.wait(60)
    assert codes == [75]
    told = json.loads((tmp_path / "message").read_text())
    assert (told["outcome"], told["step"], told["exit_code"], told["error"]["code"]) == ("Failed", 4, 75, "Hang")
    errors = capfd.readouterr().err
    assert "rank 0 has finished no micro-batch for" in errors
    assert "since step 5, micro-batch 1; all ranks are at the same place" in errors
    assert "test_standing_still_ends_the_process" in errors  # this thread's stack


LONG = {"stage": "train", "beta": 0.1, "epochs": 1000, "zero_stage": 1}


def wait_for_rows(experiment: Experiment, gang: Gang, count: int) -> None:
    path = experiment.output("train") / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < count:
        assert all(rank.poll() is None for rank in gang.processes), gang.text()
        assert time.monotonic() < deadline, gang.text()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_stopped_process_is_found_and_named(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config(LONG, {"hang_timeout_seconds": 4, "checkpoint_every_steps": 1000})
    gang = start_ranks(experiment, config, world_size=2)
    wait_for_rows(experiment, gang, 3)
    gang.send(signal.SIGSTOP, ranks=[1])
    assert gang.processes[0].wait(60) == 75, gang.text()
    gang.kill()
    text = gang.text()
    assert "rank 0 has finished no micro-batch for" in text
    assert "gave no sign of life: stopped, or gone with its node" in text
    assert "Current thread" in text or "Thread 0x" in text
    told = json.loads(experiment.termination_message(0).read_text())
    assert told["error"]["code"] == "Hang"
    assert "rank 1" in told["error"]["message"]
    assert told["step"] >= 3


@pytest.mark.slow
def test_a_rank_that_computes_nothing_any_more_is_found_and_named(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config(LONG, {"hang_timeout_seconds": 4})
    faults = {1: "sleep_for_ever_in_the_third_step"}
    gang = start_ranks(experiment, config, world_size=2, faults=faults)
    codes = gang.wait(120)
    assert codes == [75, 75], gang.text()
    text = gang.text()
    assert "stacks of rank 1" in text
    assert "in optimizer_step" in text
    told = [json.loads(experiment.termination_message(rank).read_text()) for rank in (0, 1)]
    assert {one["step"] for one in told} == {2}
    assert {one["error"]["code"] for one in told} <= {"Hang", "PeerLost"}
    assert "Hang" in {one["error"]["code"] for one in told}


def test_the_default_end_leaves_no_time_for_anything_else() -> None:
    assert Watchdog.end is os._exit
