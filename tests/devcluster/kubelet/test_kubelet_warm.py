"""Containers that are forked from the warm process: they equal those that are started, or are started."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.patience import LIMIT_S

from wrpo_devcluster.config import default_environment
from wrpo_devcluster.kubelet import warm as warm_module
from wrpo_devcluster.kubelet.containers import Launch, launch, marker, stop, wait_ended
from wrpo_devcluster.kubelet.records import MARKER, Attempt, ExitRecord
from wrpo_devcluster.kubelet.warm import WarmProcess

WORKER = ["python", "-m", "support.warm_worker"]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no reply come too late on a busy machine: the container would be started, not forked."""
    monkeypatch.setattr(warm_module, "_REPLY_S", LIMIT_S)


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def is_gone(pid: int | str) -> bool:
    return not Path(f"/proc/{pid}/exe").exists()


def environment(tmp_path: Path) -> dict[str, str]:
    source = tmp_path / "source.py"
    if not source.exists():
        source.touch()
    return {**default_environment(os.environ), "WARM_SOURCE": str(source)}


@contextmanager
def warm_process(tmp_path: Path, **changes: str) -> Iterator[WarmProcess]:
    """A warm process that has announced that it is ready, or has ended."""
    made = WarmProcess("support.warm_program", environment(tmp_path) | changes, tmp_path / "warm")
    made.start()
    wait_ready(made)
    try:
        yield made
    finally:
        made.close()


def wait_ready(process: WarmProcess) -> None:
    connection = process._connection
    assert connection is not None
    assert select.select([connection], [], [], LIMIT_S)[0]


class Container:
    """One run in a separate directory."""

    def __init__(self, tmp_path: Path, name: str) -> None:
        self.home = tmp_path / "home"
        self.cwd = tmp_path / "cwd"
        self.home.mkdir(exist_ok=True)
        self.cwd.mkdir(exist_ok=True)
        # Strays are found by the names, and other tests run at the same time.
        self.attempt = Attempt(tmp_path / "pods" / f"{os.getpid()}-{tmp_path.name}-{name}" / "c", 0)
        self._env = environment(tmp_path)

    def start(
        self,
        warm: WarmProcess | None,
        *arguments: str,
        program: Sequence[str] = WORKER,
        changes: Mapping[str, str] | None = None,
    ) -> None:
        own = {"HOME": str(self.home), "MESSAGE": str(self.attempt.termination_file), MARKER: marker(self.attempt)}
        launch(self.attempt, Launch([*program, *arguments], {**self._env, **own, **(changes or {})}, self.cwd), warm)

    def end(self) -> ExitRecord:
        wait_for(lambda: self.attempt.exit() or self.attempt.process(), "the container has not started")
        record = asyncio.run(wait_ended(self.attempt))
        assert record is not None, (self.attempt.directory / "shim.log").read_text()
        return record

    @property
    def log(self) -> list[str]:
        return [line.split(" ", 3)[3] for line in self.attempt.log_file.read_text().splitlines()]

    @property
    def message(self) -> str:
        return self.attempt.termination_file.read_text()

    def facts(self) -> dict[str, Any]:
        """The worker's report, without the names in which the two runs of a comparison differ."""
        report: dict[str, Any] = json.loads(self.log[0])
        for name in (MARKER, "MESSAGE"):
            report["env"].pop(name)
        return report


@pytest.mark.parametrize(
    ("how", "code", "changes"),
    [
        ("0", 0, {"WARM_THREADS": "3"}),
        ("7", 7, {"PYTHONUNBUFFERED": "1"}),
        ("a text", 1, {"WRPO_OTHER": "x"}),
        ("raise", 1, {}),
    ],
)
def test_a_forked_container_equals_one_that_is_started(
    tmp_path: Path, how: str, code: int, changes: dict[str, str]
) -> None:
    forked, started = Container(tmp_path, "forked"), Container(tmp_path, "started")
    with warm_process(tmp_path) as warm:
        forked.start(warm, how, changes=changes)
        started.start(None, how, changes=changes)
        assert (forked.end().exit_code, started.end().exit_code) == (code, code)
    assert (forked.message, started.message) == ("forked", "started")
    assert forked.facts() == started.facts()
    assert forked.facts()["mark"]
    assert forked.facts()["library"][3] == str(forked.home / "store")
    lines = "at the end" if how != "raise" else "ValueError: boom"
    for each in (forked, started):
        assert {lines, "of a child by the library"} <= set(each.log)


def test_a_forked_container_is_stopped_by_sigterm_and_takes_its_strays_along(tmp_path: Path) -> None:
    one = Container(tmp_path, "one")
    with warm_process(tmp_path) as warm:
        one.start(warm, "wait")
        wait_for(lambda: one.attempt.log_file.exists() and one.log == ["up"], "the worker is not up")
        wait_for((one.cwd / "stray").exists, "the stray is not there")
        asyncio.run(stop(one.attempt, LIMIT_S))
        assert (one.end().exit_code, one.log) == (143, ["up", "stopped"])
        stray = (one.cwd / "stray").read_text()
        wait_for(partial(is_gone, stray), "the stray lives")


def test_processes_of_a_forked_container_end_with_its_supervisor(tmp_path: Path) -> None:
    one = Container(tmp_path, "one")
    with warm_process(tmp_path) as warm:
        one.start(warm, "wait")
        wait_for((one.cwd / "stray").exists, "the stray is not there")
        process = one.attempt.process()
        assert process is not None
        os.kill(process.shim_pid, signal.SIGKILL)
        assert asyncio.run(wait_ended(one.attempt)) is None
        for pid in (process.pid, (one.cwd / "stray").read_text()):
            wait_for(partial(is_gone, pid), f"process {pid} lives")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"WARM_MODE": "other"}, "WARM_MODE differs"),
        ({"WARM_CACHE": "/elsewhere"}, "WARM_CACHE differs"),
        ({"WARM_QUIET": "0"}, "WARM_QUIET differs"),
        ({"WARM_NATIVE_POOL": "4"}, "WARM_NATIVE_POOL differs"),
        ({"WARM_THREADS": "many"}, "WARM_THREADS differs"),
    ],
)
def test_a_container_whose_imports_would_read_something_else_is_started(
    tmp_path: Path, changes: dict[str, str], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    one = Container(tmp_path, "one")
    with warm_process(tmp_path) as warm:
        # Some are no names that the library reads, so that only the warm process must notice.
        one.start(warm, "0", changes=changes)
        assert (one.end().exit_code, one.message) == (0, "started")
    assert f"started without the warm process: {why}" in caplog.text


def test_another_program_is_started(tmp_path: Path) -> None:
    one = Container(tmp_path, "one")
    with warm_process(tmp_path) as warm:
        one.start(warm, program=["sh", "-c", "echo of a shell"])
        assert (one.end().exit_code, one.log) == (0, ["of a shell"])


def test_after_a_change_of_the_programs_files_another_warm_process_imports_them(tmp_path: Path) -> None:
    runs = [Container(tmp_path, name) for name in ("before", "after", "meanwhile", "later")]
    with warm_process(tmp_path) as warm:
        for number, each in enumerate(runs):
            if number == 1:
                os.utime(tmp_path / "source.py", ns=(0, 0))
            each.start(warm, "0")
            each.end()
            if number in {1, 2}:
                wait_ready(warm)
    assert [each.message for each in runs] == ["forked", "started", "started", "forked"]


def test_a_program_that_starts_threads_is_not_forked(tmp_path: Path) -> None:
    one = Container(tmp_path, "one")
    with warm_process(tmp_path, WARM_STARTS_THREAD="1") as warm:
        one.start(warm, "0", changes={"WARM_STARTS_THREAD": "1"})
        assert (one.end().exit_code, one.message) == (0, "started")
    assert "warm starts are off: 2 threads run" in (tmp_path / "warm" / "warm.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_reply_a_container_is_started_once_and_the_next_is_forked_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    first, second, third = (Container(tmp_path, name) for name in ("first", "second", "third"))
    with warm_process(tmp_path) as warm:
        first.start(warm, "0")
        first.end()
        gone = warm.pid
        assert gone is not None
        assert warm._connection is not None
        warm._connection.settimeout(0.5)
        os.kill(gone, number)
        second.start(warm, "0")
        second.end()
        wait_ready(warm)
        assert warm.pid != gone
        third.start(warm, "0")
        third.end()
    assert [each.message for each in (first, second, third)] == ["forked", "started", "forked"]


def test_forked_containers_outlive_the_warm_process(tmp_path: Path) -> None:
    one = Container(tmp_path, "one")
    with warm_process(tmp_path) as warm:
        one.start(warm, "wait")
        wait_for(lambda: one.attempt.log_file.exists() and one.log == ["up"], "the worker is not up")
    process = one.attempt.process()
    assert process is not None
    assert process.is_alive()
    # What a later control plane does with a container that it finds.
    asyncio.run(stop(one.attempt, LIMIT_S))
    assert one.end().exit_code == 143
