"""The benchmark of curation runs at a small size, and its data are those that curation reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.curation import __main__ as curation
from benchmarks.curation.data import Size, size_of


def test_the_paper_s_size_is_the_default() -> None:
    assert size_of(curation.PAPER_ROWS, 10) == Size(prompts=60_000, sources=10)


def test_a_small_run_reports_time_and_memory_and_keeps_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[dict[str, object]] = []
    monkeypatch.setattr(curation, "save_result", lambda _name, _machine, figures: saved.append(dict(figures)))
    arguments = ["--rows", "400", "--sources", "2", "--data", str(tmp_path), "--threads", "1"]
    assert curation.main(arguments) == 0
    made = json.loads((tmp_path / "40x2" / "complete.json").read_text())
    assert made["responses"] == 600
    figure = saved[0]["figures"][0]  # type: ignore[index]
    assert (
        figure["rows"] + sum(count for name, count in figure["metrics"].items() if name.startswith("dropped_"))
        == made["prompts"]
    )
    assert figure["seconds"] > 0
    assert 50 << 20 < figure["peak_bytes"] < 1 << 30
    assert "Curation of 600 responses (40 prompts" in " ".join(capsys.readouterr().out.split())
