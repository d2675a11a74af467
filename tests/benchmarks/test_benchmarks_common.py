"""The shared parts of the benchmarks: figures, order, processes, memory, results."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from support.patience import LIMIT_S

from benchmarks.common.machine import Machine, describe_machine
from benchmarks.common.memory import PeakMemory
from benchmarks.common.process import WorkerError, run_worker
from benchmarks.common.results import Table, load_result, machine_of, replace_section, save_result
from benchmarks.common.summary import Summary, alternating

MACHINE = Machine("a cpu", 2, 24.0, None, "3.11", {"torch": "2.13.0"}, "2026-01-01 12:00 UTC", 0.25)


def test_a_summary_is_the_median_with_extremes() -> None:
    summary = Summary.of([3.0, 1.0, 10.0])
    assert summary == Summary(3.0, 1.0, 10.0, 3)
    assert summary.text(" s", 1) == "3.0 s (1.0..10.0)"
    with pytest.raises(ValueError, match="at least one"):
        Summary.of([])


def test_rounds_alternate() -> None:
    assert alternating(["ours", "peer"], 3) == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_peak_memory_sees_what_was_freed_again_and_forgets_what_came_before() -> None:
    memory = PeakMemory()
    before = bytearray(300 << 20)
    del before
    memory.start()
    during = bytearray(b"x") * (64 << 20)
    del during
    assert 60 << 20 < memory.stop() < 120 << 20


def test_a_worker_gives_its_result_and_its_error(tmp_path: Path) -> None:
    module = "benchmarks_echo_worker"
    (tmp_path / f"{module}.py").write_text(
        "import os\n"
        "from benchmarks.common.process import ROOT, worker_main\n"
        "def work(spec):\n"
        "    if spec.get('fail'):\n"
        "        raise ValueError('on purpose')\n"
        "    names = ('OMP_NUM_THREADS', 'RANK', 'WORLD_SIZE')\n"
        "    return {'doubled': 2 * spec['value'], **{n: os.environ.get(n) for n in names}}\n"
        "if __name__ == '__main__':\n"
        "    worker_main(work)\n"
    )
    environ = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).resolve().parents[2]}"}
    result = run_worker(module, {"value": 4}, threads=3, world_size=2, environ=environ, timeout_s=LIMIT_S)
    assert result == {"doubled": 8, "OMP_NUM_THREADS": "3", "RANK": "0", "WORLD_SIZE": "2"}
    with pytest.raises(WorkerError, match="on purpose"):
        run_worker(module, {"fail": True}, threads=1, environ=environ, timeout_s=LIMIT_S)


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    save_result("some", MACHINE, {"cases": [{"seconds": 1.5}]}, directory=tmp_path)
    loaded = load_result("some", directory=tmp_path)
    assert loaded is not None
    assert loaded["cases"] == [{"seconds": 1.5}]
    assert machine_of(loaded) == MACHINE
    assert load_result("other", directory=tmp_path) is None


def test_this_machine_is_described() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.memory_gib > 0.5
    assert machine.packages["torch"].startswith("2.")
    assert f"{machine.load_average:.2f}" in machine.line


def test_a_table_is_the_same_on_the_terminal_and_in_the_readme(tmp_path: Path) -> None:
    table = Table("Speed", ["case", "ours"], [["long", "2.0"]], ["One note."])
    page = tmp_path / "README.md"
    page.write_text("Before\n<!-- speed -->\nold\n<!-- /speed -->\nAfter\n")
    replace_section(page, "speed", table.markdown())
    text = page.read_text()
    assert "| long | 2.0 |" in text
    assert "old" not in text
    assert text.startswith("Before\n")
    assert text.endswith("After\n")
    with pytest.raises(ValueError, match="no section"):
        replace_section(page, "none", "")
    console = Console(record=True, width=80, file=io.StringIO())
    table.show(console)
    shown = console.export_text()
    assert "long" in shown
    assert "One note." in shown
