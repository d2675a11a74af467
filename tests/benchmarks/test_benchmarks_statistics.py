"""The benchmark of statistics runs at a small size."""

from __future__ import annotations

import pytest

from benchmarks.statistics import __main__ as statistics


def test_a_small_run_measures_every_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[dict[str, object]] = []
    monkeypatch.setattr(statistics, "save_result", lambda _name, _machine, figures: saved.append(dict(figures)))
    assert statistics.main(["--systems", "2", "--resamples", "100"]) == 0
    figures = saved[0]["figures"]
    assert isinstance(figures, list)
    assert [(figure["case"], figure["items"]) for figure in figures] == [
        ("alpaca", 805),
        ("arena", 500),
        ("mt_bench", 80),
    ]
    assert "Statistics of 2 systems, 100 resamples" in " ".join(capsys.readouterr().out.split())
