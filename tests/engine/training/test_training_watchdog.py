"""The hang watchdog: a run without progress exits, reports the place of every rank, and is retried."""

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
from support.patience import LIMIT_S
from training_support import Experiment, Gang, make_experiment, start_ranks

from wrpo_engine.training.monitoring.callbacks import RunStart, StepEnd
from wrpo_engine.training.monitoring.watchdog import Heartbeat, LocalBoard, Watchdog, describe

WHO = {
    "one is behind": ([Heartbeat(5, 3, 9), Heartbeat(5, 2, 9)], [], "rank 1 is behind (step 6, micro-batch 3)"),
    "several are behind": (
        [Heartbeat(5, 0, 1), Heartbeat(4, 7, 1), Heartbeat(4, 7, 1)],
        [],
        "rank 1, rank 2 is behind (step 5, micro-batch 8)",
    ),
    "none is behind": ([Heartbeat(5, 3, 9), Heartbeat(5, 3, 9)], [], "all ranks are at the same step and micro-batch"),
    "one is silent": (
        [Heartbeat(5, 3, 9), Heartbeat(5, 3, 2)],
        [1],
        "rank 1 (step 6, micro-batch 4) sent no heartbeat: the process is stopped, or lost with its node",
    ),
    "one never reported": (
        [Heartbeat(0, 0, 9), None],
        [1],
        "rank 1 (it never reported) sent no heartbeat: the process is stopped, or lost with its node",
    ),
}


@pytest.mark.parametrize(("heartbeats", "silent", "text"), WHO.values(), ids=WHO.keys())
def test_the_message_names_the_ranks_that_block_the_others(
    heartbeats: list[Heartbeat | None], silent: list[int], text: str
) -> None:
    assert describe(heartbeats, silent) == text


def test_a_heartbeat_survives_its_encoding() -> None:
    assert Heartbeat.decode(Heartbeat(12, 3, -1).encode()) == Heartbeat(12, 3, -1)


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watchdog(clock: Clock, **changes: Any) -> Watchdog:
    return Watchdog(0, LocalBoard(), changes.pop("timeout_s", 1000.0), {}, clock=clock, **changes)


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
        # Rank 1's process is stopped; rank 2 only computes for long; rank 3 has finished.
        watched.note([Heartbeat(4, 1, beat), Heartbeat(4, 1, 17), Heartbeat(4, 1, beat), Heartbeat(4, 1, -1)])
        assert watched.verdict() is None
        clock.now += 10
    assert watched.verdict() == ("PeerSilent", 130.0, [1])


def test_a_rank_that_makes_progress_ignores_silent_peers() -> None:
    clock = Clock()
    watched = watchdog(clock, silence_s=120)
    watched.note([None, Heartbeat(4, 1, 17)])
    clock.now += 500
    watched.beat()
    assert watched.verdict() is None


def test_a_first_node_whose_store_does_not_reply_is_silent() -> None:
    clock = Clock()
    watched = Watchdog(1, LocalBoard(), 1000.0, {}, silence_s=120, clock=clock)
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
    """Such a thread aborts the process when the interpreter exits."""
    posting, may_end, posted = threading.Event(), threading.Event(), []

    class SlowBoard(LocalBoard):
        def post(self, heartbeat: Heartbeat) -> None:
            posting.set()
            may_end.wait(LIMIT_S)
            posted.append(heartbeat.beat)

    watched = Watchdog(0, SlowBoard(), 1000.0, {}).start()
    closing = threading.Thread(target=watched.close)
    closing.start()
    assert posting.wait(LIMIT_S)
    assert closing.is_alive()
    may_end.set()
    closing.join(LIMIT_S)
    assert posted == [-1]
    assert not any(thread.is_alive() for thread in watched._threads)


def test_a_hang_ends_the_process_with_stacks_and_a_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended, codes = threading.Event(), list[int]()

    def end(code: int) -> Any:
        codes.append(code)
        watched.close()
        ended.set()

    environ = {"WRPO_TERMINATION_MESSAGE_PATH": str(tmp_path / "message")}
    watched = Watchdog(0, LocalBoard(), 0.3, environ, end=end)
    watched.on_start(RunStart(10, 4, 100))
    watched.start()
    assert ended.wait(LIMIT_S)
    assert codes == [75]
    message = json.loads((tmp_path / "message").read_text())
    assert (message["outcome"], message["step"], message["exit_code"], message["error"]["code"]) == (
        "Failed",
        4,
        75,
        "Hang",
    )
    errors = capfd.readouterr().err
    assert "rank 0 has finished no micro-batch for" in errors
    assert "since step 5, micro-batch 1; all ranks are at the same step and micro-batch" in errors
    assert "test_a_hang_ends_the_process" in errors  # this thread's stack


LONG = {"stage": "train", "beta": 0.1, "epochs": 1000, "zero_stage": 1}


def wait_for_rows(experiment: Experiment, gang: Gang, count: int) -> None:
    path = experiment.output("train") / "metrics.jsonl"
    deadline = time.monotonic() + LIMIT_S
    while not path.exists() or path.read_text().count("\n") < count:
        assert all(rank.poll() is None for rank in gang.processes), gang.text()
        assert time.monotonic() < deadline, gang.text()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_stopped_process_is_found_and_named(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config(LONG, {"hang_timeout_seconds": 30, "checkpoint_every_steps": 1000})
    gang = start_ranks(experiment, config, world_size=2)
    wait_for_rows(experiment, gang, 3)
    gang.send(signal.SIGSTOP, ranks=[1])
    assert gang.processes[0].wait(LIMIT_S) == 75, gang.text()
    gang.kill()
    text = gang.text()
    assert "rank 0 has finished no micro-batch for" in text
    assert "sent no heartbeat: the process is stopped, or lost with its node" in text
    assert "Current thread" in text or "Thread 0x" in text
    message = json.loads(experiment.termination_message(0).read_text())
    assert message["error"]["code"] == "Hang"
    assert "rank 1" in message["error"]["message"]
    assert message["step"] >= 3


@pytest.mark.slow
def test_a_rank_that_computes_nothing_any_more_is_found_and_named(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    config = experiment.config(LONG, {"hang_timeout_seconds": 40})  # longer than a slow machine's first step
    faults = {1: "sleep_for_ever_in_the_third_step"}
    gang = start_ranks(experiment, config, world_size=2, faults=faults)
    codes = gang.wait()
    assert codes == [75, 75], gang.text()
    text = gang.text()
    assert "stacks of rank 1" in text
    assert "in optimizer_step" in text
    messages = [json.loads(experiment.termination_message(rank).read_text()) for rank in (0, 1)]
    assert {one["step"] for one in messages} == {2}
    assert {one["error"]["code"] for one in messages} <= {"Hang", "PeerLost"}
    assert "Hang" in {one["error"]["code"] for one in messages}


def test_the_default_end_leaves_no_time_for_anything_else() -> None:
    assert Watchdog.end is os._exit
