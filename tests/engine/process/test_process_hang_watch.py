"""A process without progress ends with 75, its stacks and a message; one with progress never does."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest
from support.patience import LIMIT_S

from wrpo_engine.config import ExitCode, TerminationMessage
from wrpo_engine.process.hang_watch import HangWatch


class Ended(Exception):  # noqa: N818 (what os._exit is replaced by)
    """The process would have ended."""


def end(code: int) -> NoReturn:
    raise Ended(code)


def test_progress_restarts_the_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    log = tmp_path / "log"
    watch = HangWatch("sampling from m", 60, {"WRPO_TERMINATION_MESSAGE_PATH": str(log)}, clock=lambda: now[0], end=end)
    for now[0] in (30.0, 60.0):
        watch.check()
    watch.beat()
    now[0] = 120.0
    watch.check()
    assert not log.exists()
    now[0] = 121.0
    with pytest.raises(Ended) as ended:
        watch.check()
    assert ended.value.args == (ExitCode.TEMPORARY,)
    message = TerminationMessage.model_validate_json(log.read_bytes())
    assert (message.outcome, message.exit_code) == ("Failed", ExitCode.TEMPORARY)
    assert message.error is not None
    assert (message.error.code, message.error.message) == ("Hang", "sampling from m made no progress for 61 s")
    shown = capfd.readouterr().err
    assert "error: sampling from m made no progress for 61 s\n" in shown


def test_a_process_that_hangs_is_ended_with_its_stacks(tmp_path: Path) -> None:
    script = """
import threading
from wrpo_engine.process.hang_watch import HangWatch
def stuck():
    threading.Event().wait()
with HangWatch("work", 0.05, {}):
    stuck()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == ExitCode.TEMPORARY
    assert "error: work made no progress for 0 s" in done.stderr
    assert "in stuck" in done.stderr


def test_work_that_is_over_is_not_watched() -> None:
    ends: list[int] = []
    asked = threading.Event()

    def clock() -> float:
        asked.set()
        return 0.0

    def refuse(code: int) -> NoReturn:
        ends.append(code)
        raise Ended(code)

    before = set(threading.enumerate())
    with HangWatch("work", 60, {}, clock=clock, end=refuse):
        (thread,) = set(threading.enumerate()) - before
    thread.join(timeout=LIMIT_S)
    assert not thread.is_alive()
    assert asked.is_set()
    assert ends == []
