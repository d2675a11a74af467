"""Signals to processes that may end at any moment."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from support.stopping import kill_within_work


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_works_gets_the_signal(number: signal.Signals) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        assert kill_within_work(process.pid, number)
    assert process.returncode == -number


def test_a_process_that_has_ended_gets_none_before_and_after_it_was_waited_for() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not kill_within_work(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    assert not kill_within_work(process.pid, signal.SIGKILL)
