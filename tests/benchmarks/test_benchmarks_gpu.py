"""The benchmark for GPUs: parts in processes of their own, failures as rows, tables with ratios, and a toy run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.patience import wait_until

from benchmarks import readme
from benchmarks.common import process
from benchmarks.common.machine import Machine
from benchmarks.common.results import save_result
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.parts import PARTS, TOTAL_BUDGET_S, Column, Part
from benchmarks.gpu.report import table
from benchmarks.gpu.rows import Row, RowWriter, last_line, read_rows

MACHINE = Machine("a cpu", 2, 24.0, None, "3.11", {}, "2026-01-01 12:00 UTC", 0.25)
ROOT = Path(__file__).resolve().parents[2]


def test_all_parts_together_end_within_their_budget_and_have_a_process_each() -> None:
    assert sum(part.budget_s for part in PARTS) <= TOTAL_BUDGET_S == 1200
    for part in PARTS:
        path = ROOT / (part.module.replace(".", "/") + ".py")
        assert "part_main(act)" in path.read_text(), part.name


class Elsewhere(Part):
    """A part whose process is a module of the test."""

    @property
    def module(self) -> str:
        return self.name


def part_of(tmp_path: Path, body: str, *, budget_s: int = 60) -> Part:
    begin = "from benchmarks.gpu.work import part_main\ndef act(work):\n"
    return module_of(tmp_path, f"import os\n{begin}{body}\npart_main(act)\n", budget_s)


def module_of(tmp_path: Path, text: str, budget_s: int) -> Part:
    (tmp_path / "a_part.py").write_text(text)
    path = f"{tmp_path}:{ROOT}"
    return Elsewhere(name="a_part", what="x", budget_s=budget_s, columns=(), environ={"PYTHONPATH": path})


def test_a_case_that_fails_is_a_row_with_its_error_and_the_next_case_runs(tmp_path: Path) -> None:
    body = """
    def fail():
        print("what the engine's process printed", flush=True)
        raise ValueError(f"no such kernel at {work.device}, toy {work.quick}")
    work.rows.measure("bad", fail)
    work.rows.measure("good", lambda: {"step_ms": 2.0})
"""
    result = gpu.run_part(part_of(tmp_path, body), quick=True, machine=MACHINE)
    bad, good = result["rows"]
    assert (bad["case"], bad["error"]) == ("bad", "ValueError: no such kernel at cpu, toy True")
    assert "in fail" in bad["detail"]
    assert good == {"case": "good", "figures": {"step_ms": 2.0}}
    assert "what the engine's process printed" in result["log"]


def test_a_process_that_crashes_keeps_its_finished_rows(tmp_path: Path) -> None:
    body = """
    work.rows.measure("good", lambda: {"step_ms": 2.0})
    print("terminate called: CUDA error", flush=True)
    os._exit(134)
"""
    rows = gpu.run_part(part_of(tmp_path, body), quick=True, machine=MACHINE)["rows"]
    assert [row["case"] for row in rows] == ["good", "(after 1 cases)"]
    assert rows[1]["error"] == "terminate called: CUDA error"
    assert "a_part (rank 0) ended with 134" in rows[1]["detail"]


def test_a_process_above_its_budget_ends_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "child"
    wait = process._wait

    def begin_when_the_child_runs(*arguments: Any) -> None:
        wait_until("the child runs", lambda: pid.exists() and pid.read_text())
        wait(*arguments)

    monkeypatch.setattr(process, "_wait", begin_when_the_child_runs)
    text = f"""
import subprocess, sys, time
from pathlib import Path
from benchmarks.common.process import worker_main
from benchmarks.gpu.rows import Row, RowWriter

def work(specification):
    RowWriter(Path(specification["rows"])).add(Row("good", {{}}))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path({str(pid)!r}).write_text(str(child.pid))
    time.sleep(600)

worker_main(work)
"""
    part = module_of(tmp_path, text, budget_s=0)
    rows = gpu.run_part(part, quick=True, machine=MACHINE)["rows"]
    assert rows[0]["case"] == "good"
    assert rows[1]["error"] == "a_part (rank 0) did not end within 0 s"
    wait_until("the child has ended", lambda: not is_running(int(pid.read_text())))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_an_incomplete_last_row_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    RowWriter(path).add(Row("one", {"step_ms": 1.0}))
    with path.open("a") as file:
        file.write('{"case": "tw')
    assert read_rows(path) == [Row("one", {"step_ms": 1.0})]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Traceback\n  File\nRuntimeError: CUDA\n  first\n", "RuntimeError: CUDA"),
        ("ValueError: a\n\nThe above exception ...\ntorch.OutOfMemoryError: b\n", "torch.OutOfMemoryError: b"),
        ("one\n\n two \n", "two"),
        ("", "ended without output"),
    ],
)
def test_the_error_of_a_row_is_the_line_of_the_last_exception(output: str, expected: str) -> None:
    assert last_line(output) == expected


def a_part(**changes: Any) -> Part:
    column = Column("step_ms", "step, ms")
    columns = (column, Column("mfu", "MFU", 1, is_share=True))
    fields: dict[str, Any] = {"name": "x", "what": "some layers", "budget_s": 1, "columns": columns, "ratio": column}
    return Part(**fields | changes)


ROWS = (
    Row.failed("broken", "OutOfMemoryError: 80 GiB | used"),
    Row("base", {"step_ms": 10.0, "mfu": 0.25}),
    Row("fast", {"step_ms": 4.0, "mfu": None}),
)


def test_a_table_has_ratios_to_the_first_case_that_worked_and_the_errors() -> None:
    shown = table(a_part(), ROWS)
    assert shown.title == "Some layers"
    assert list(shown.columns) == ["case", "step, ms", "MFU", "times base", "error"]
    assert [list(row) for row in shown.rows] == [
        ["broken", "-", "-", "-", "OutOfMemoryError: 80 GiB / used"],
        ["base", "10.0", "25.0%", "1.00x", ""],
        ["fast", "4.0", "-", "2.50x", ""],
    ]


def test_a_rate_is_compared_the_other_way_and_one_case_is_compared_with_nothing() -> None:
    rates = table(a_part(higher_is_better=True), ROWS[1:])
    assert [row[-1] for row in rates.rows] == ["1.00x", "0.40x"]
    assert list(table(a_part(), ROWS[:2]).columns) == ["case", "step, ms", "MFU", "error"]


def test_without_a_gpu_only_the_toy_sizes_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "describe_machine", lambda: MACHINE)
    assert gpu.main([]) == 1
    assert "There is no CUDA device. Run this on a machine with one, or with --quick" in capsys.readouterr().out


def test_the_help_names_every_part_with_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"{part.name:12} {part.what}; {part.budget_s} s" in shown for part in PARTS)


@pytest.mark.slow
def test_a_toy_run_writes_json_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "gpu.json"
    assert gpu.main(["--quick", "--part", "head", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["is_toy"] is True
    assert list(result["parts"]) == ["head"]
    rows = {row["case"]: row["figures"] for row in result["parts"]["head"]["rows"]}
    assert set(rows) >= {"the engine's defaults", "chunks of 17 tokens", "no kept softmax"}
    assert all(figures["largest_error"] < 1e-3 for figures in rows.values())
    assert rows["the engine's defaults"]["step_ms"] > 0
    assert "Log-probabilities by a head of 128,256 tokens" in capsys.readouterr().out


def test_the_readme_takes_figures_of_a_gpu_and_none_of_a_toy_run(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(readme.README.read_text())
    parts = {"layers": {"rows": [{"case": "the engine's defaults", "figures": {"step_ms": 12.5, "mfu": 0.4}}]}}
    save_result(gpu.QUICK_NAME, MACHINE, {"is_toy": True, "parts": parts}, directory=tmp_path)
    assert readme.render(page, tmp_path) == []
    save_result(gpu.NAME, MACHINE, {"is_toy": False, "parts": parts}, directory=tmp_path)
    assert readme.render(page, tmp_path) == [gpu.NAME]
    assert "| the engine's defaults | 12.5 | - | 40.0% | - |" in page.read_text()
