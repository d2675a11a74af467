"""Ranks that wait for the sequential work of another rank: as long as it sends heartbeats."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import LIMIT_S
from training_support import ROOT, free_port

from wrpo_engine.training.distributed.sequential import Heartbeats

TIMEOUT_S = 10
"""Of a collective; longer than a busy machine keeps a rank waiting."""
HERE = Path(__file__).parent


def test_silence_counts_from_the_last_change_of_a_beat() -> None:
    heartbeats = Heartbeats(100.0)
    assert heartbeats.silence(107.0) == (7.0, []), "the store has not replied yet"
    heartbeats.note({0: None, 4: None}, 110.0)
    heartbeats.note({0: "1", 4: None}, 115.0)
    assert heartbeats.silence(118.0) == (8.0, [4])
    heartbeats.note({0: "1", 4: "7"}, 120.0)
    heartbeats.note({0: "1", 4: "8"}, 130.0)
    assert heartbeats.silence(131.0) == (16.0, [0])


def test_a_rank_that_has_finished_is_not_silent() -> None:
    heartbeats = Heartbeats(100.0)
    heartbeats.note({0: "1", 4: "1"}, 110.0)
    heartbeats.note({4: "1"}, 120.0)
    assert heartbeats.silence(121.0) == (11.0, [4])
    heartbeats.note({}, 130.0)
    assert heartbeats.silence(130.0) == (30.0, [])


RANKS = """
import os, signal, sys, time
from wrpo_engine.errors import TemporaryError, WrpoError
from wrpo_engine.training.distributed.collectives import open_group

case, method, worker, timeout_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])

def work():
    if int(os.environ["RANK"]) != worker:
        return "nothing"
    if case == "fails":
        raise KeyError("damaged")
    if case == "freezes":
        os.kill(os.getpid(), signal.SIGSTOP)
    if case == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1.5 * timeout_s)
    return "done"

def rank(number):
    os.environ.update(RANK=str(number), LOCAL_RANK="0", WORLD_SIZE="2")
    try:
        with open_group(os.environ, timeout_s=timeout_s) as group:
            group.barrier()
            results = [getattr(group, method)(work), group.on_main(lambda: "once more")]
        os.write(1, f"rank {number}: {results}\\n".encode())
        return 0
    except WrpoError as error:
        os.write(1, f"rank {number}: {error}\\n".encode())
        return error.exit_code

pids = []
for number in range(2):
    pids.append(os.fork())
    if pids[-1] == 0:
        os._exit(rank(number))
waiting = os.waitstatus_to_exitcode(os.waitpid(pids[1 - worker], 0)[1])
if case == "freezes":
    os.kill(pids[worker], signal.SIGKILL)
working = os.waitstatus_to_exitcode(os.waitpid(pids[worker], 0)[1])
print("exit codes", waiting, working)
"""


def run_two(case: str, method: str, worker: int) -> list[str]:
    """Return what the two ranks print."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    arguments = [sys.executable, "-c", RANKS, case, method, str(worker), str(TIMEOUT_S)]
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "worker", "results"),
    [
        ("on_main", 0, ["['done', 'once more']"] * 2),
        ("on_each_node", 0, ["['done', 'once more']", "['nothing', 'once more']"]),
        ("on_each_node", 1, ["['nothing', 'once more']", "['done', 'once more']"]),
    ],
)
def test_work_may_take_longer_than_a_collective_may_wait(method: str, worker: int, results: list[str]) -> None:
    lines = run_two("works", method, worker)
    assert lines == ["exit codes 0 0", *(f"rank {rank}: {result}" for rank, result in enumerate(results))]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "worker"), [("on_main", 0), ("on_each_node", 1)])
def test_a_frozen_rank_is_waited_for_no_longer_than_a_collective(method: str, worker: int) -> None:
    lines = run_two("freezes", method, worker)
    assert lines[0] == "exit codes 75 -9"
    said = f"rank {1 - worker}: rank {worker}, which works while this rank waits, sent no heartbeat for"
    assert lines[1].startswith(said)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "worker"), [("on_main", 0), ("on_each_node", 1)])
def test_a_rank_that_dies_during_its_work_ends_the_others_with_the_temporary_code(method: str, worker: int) -> None:
    lines = run_two("dies", method, worker)
    assert lines[0] == "exit codes 75 -9"


@pytest.mark.slow
def test_an_error_of_the_working_rank_is_raised_on_every_rank() -> None:
    lines = run_two("fails", "on_each_node", 1)
    assert lines[0] == "exit codes 75 1", lines
