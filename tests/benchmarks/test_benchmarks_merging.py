"""The benchmark of merging runs at a small size."""

from __future__ import annotations

import pytest

from benchmarks.merging import __main__ as merging


def test_a_small_run_measures_memory_and_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: list[dict[str, object]] = []
    monkeypatch.setattr(merging, "METHODS", ("Linear", "SCE"))
    # A second process would only import the same again.
    monkeypatch.setattr(merging, "merged_separately", merging.merged)
    monkeypatch.setattr(merging, "save_result", lambda _name, _machine, figures: saved.append(dict(figures)))
    assert merging.main(["--models", "3", "--vocabulary", "64", "--hidden", "8", "--intermediate", "16"]) == 0
    figures = saved[0]["figures"]
    assert isinstance(figures, list)
    assert [figure["method"] for figure in figures] == ["Linear", "SCE"]
    for figure in figures:
        assert 0 < figure["anonymous_gib"] <= figure["resident_gib"] < merging.LIMIT_GIB
        assert figure["bytes_per_s"] > 0
    assert "Merging 3 models, embedding 64 x 8" in " ".join(capsys.readouterr().out.split())
