"""The report's table of systems on benchmarks, with answers and verdicts."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from evaluation_support import PROMPTS, Cells
from support.browser import assert_readable

from wrpo_engine.config import ArtifactRef, ReportParams
from wrpo_engine.contract.evaluation import EvaluatedBenchmark, EvaluatedSystem, EvaluateParams
from wrpo_engine.evaluation import stage as evaluation
from wrpo_engine.reporting import stage
from wrpo_engine.reporting.benchmarks import view_of
from wrpo_engine.stage import StageContext

MakeCtx = Callable[..., StageContext]
HOSTILE = '<script>alert(1)</script>\n</div>""" 50 % & \'x\''
ITEMS = [(f"q{n}", [f"question {n} {HOSTILE}"]) for n in range(6)]
SYSTEMS = (
    EvaluatedSystem(name="target", label="target"),
    EvaluatedSystem(name="trained", label="WRPO-DPO", uses_reward=True),
    EvaluatedSystem(
        name="moa",
        label="moa",
        form="Mixture",
        answers="mixture",
        members=("target", "trained"),
        choices={"aggregator": "<b>big</b>", "rounds": "1"},
    ),
)
VALUES: Mapping[str, list[float | None]] = {
    "target": [0.0, 0.5, 0.0, 0.5, 0.0, 0.5],
    "trained": [1.0, 1.0, 0.5, 1.0, 1.0, None],
    "moa": [1.0, 0.0, 1.0, 1.0, 0.5, 1.0],
}


@pytest.fixture
def evaluated(make_ctx: MakeCtx, commit_artifact: Callable[..., ArtifactRef]) -> ArtifactRef:
    """Three systems on held-out prompts by a reward, and on one benchmark by two judges."""
    cells = Cells(commit_artifact)
    cells.prompts()
    cells.bench("arena", ITEMS)
    for system in SYSTEMS:
        cells.answers(
            system.name, "held-out", {key: [f"{system.name} {HOSTILE}"] for key, _ in PROMPTS}, role=system.answers
        )
        cells.grades(system.name, "held-out", {"p1": 0.5, "p2": 0.25, "p3": len(system.name) / 10})
        texts = {item: [f"{system.label} says {HOSTILE}" * (1 + len(system.name))] for item, _ in ITEMS}
        cells.answers(system.name, "arena", texts, role=system.answers)
        rows = [(f"q{n}", value, 2.0, value is not None) for n, value in enumerate(VALUES[system.name])]
        for judge in ("gpt", "local"):
            about = {"model": f"org/{judge} {HOSTILE}", "protocol": "Text", "temperature": 0.0}
            asked = [
                (f"q{n}", order, 0, "unparsable" if value is None else "ok", HOSTILE, value)
                for n, value in enumerate(VALUES[system.name])
                for order in (0, 1)
            ]
            cells.verdicts(system.name, "arena", rows, judge=judge, about=about, asked=asked)
    params = EvaluateParams(
        systems=SYSTEMS,
        benchmarks=(
            EvaluatedBenchmark(name="held-out", kind="HeldOutReward", rewards=("main",)),
            EvaluatedBenchmark(name="arena", kind="ArenaHard", protocol="ArenaHard", judges=("gpt", "local")),
        ),
        subject="trained",
        opponents=("target",),
        resamples=300,
    )
    ctx = make_ctx(params, cells.inputs)
    evaluation.run(ctx)
    return ctx.config.output


@pytest.fixture
def page(make_ctx: MakeCtx, evaluated: ArtifactRef) -> str:
    ctx = make_ctx(ReportParams(title="three systems", sample_answers=2), {"evaluation": evaluated})
    stage.run(ctx)
    return (ctx.output.directory / "report.html").read_text(encoding="utf-8")


def table_of(page: str, mark: str) -> list[list[str]]:
    """Return the texts of a table's cells, row by row."""
    table = page.partition(mark)[2].partition("</table>")[0]
    return [
        [
            " ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split())
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)
        ]
        for row in table.split("<tr>")[1:]
    ]


def test_the_table_has_scores_with_intervals_and_the_judge_and_its_invalid_share_in_the_head(page: str) -> None:
    head, target, trained, moa = table_of(page, '<table id="benchmarks">')
    # Columns in the order of the benchmarks, judges of a benchmark in theirs.
    assert head[0] == "system"
    assert head[1] == "held-out (held-out prompts) reward org/reward mean reward 3 items"
    assert head[2].startswith("arena (Arena-Hard v0.1) judge org/gpt <script>")
    assert head[2].endswith("(Text, temperature 0) win rate in % 6 items invalid 0.0% to 16.7%")
    assert target[0] == "target"
    assert re.fullmatch(r"25\.00 [\d.]+ to [\d.]+ 20\.00 \([\d.]+ to [\d.]+\) on the 5 common", target[2])
    assert re.fullmatch(
        r"90\.00 [\d.]+ to 100\.00 5 judged \+70 \(\+[\d.]+ to \+[\d.]+\), p (= 0\.\d{3}|< 0\.001)", trained[2]
    )
    assert trained[1].startswith("0.4833 † ")
    assert moa[0] == "moa mixture of target, WRPO-DPO aggregator: <b>big</b> rounds: 1"


def test_a_score_by_the_reward_that_trained_the_system_is_marked(page: str) -> None:
    rows = table_of(page, '<table id="benchmarks">')
    assert ["†" in row[1] for row in rows[1:]] == [False, True, False]
    assert "† scored by the reward that trained or selected the system" in page


def test_details_count_verdicts_and_name_the_detectable_difference(page: str) -> None:
    rows = table_of(page, "arena by gpt: judged answers")
    assert rows[0] == [
        *("system", "judged", "characters", "tokens", "unparsable"),
        *("advantage of the first place", "contradicted", "detectable"),
    ]
    assert [row[0] for row in rows[1:]] == ["target", "WRPO-DPO", "moa"]
    assert [row[4] for row in rows[1:]] == ["0", "2", "0"]
    assert [row[-1] == "" for row in rows[1:]] == [True, False, False]


def test_win_rates_between_systems_are_a_matrix(page: str) -> None:
    rows = table_of(page, "arena by gpt, 5 common items: win rates between systems")
    assert rows[0] == ["row against column", "target", "WRPO-DPO", "moa"]
    assert rows[1] == ["target", "", "0%", "20%"]
    assert rows[2] == ["WRPO-DPO", "100%", "", "60%"]


def test_agreement_of_judges_is_named(page: str) -> None:
    assert "arena, gpt and local: Kendall&#39;s tau 1 (1 to 1) over 3 systems on 5 items; 100% of" in page


def test_answers_are_shown_beside_their_verdicts_and_no_text_becomes_markup(page: str) -> None:
    blocks = page.split('<div class="answers" id="example-')[1:]
    # Two of the held-out prompts, which moa answered as well, and two of arena.
    assert len(blocks) == 4
    assert "WRPO-DPO says &lt;script&gt;" in blocks[2]
    assert blocks[2].count('<div class="verdict"><b>gpt</b>') == 6
    assert "unparsable" not in blocks[2]
    assert "<script" not in page
    assert "<b>big</b>" not in page
    assert re.findall(r"(?:src|href|action)=\"(?!#)[^\"]*\"|url\((?!#)[^)]*\)|@import", page) == []


def test_charts_of_benchmarks_are_well_formed_and_have_ids_of_their_own(page: str) -> None:
    found = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for chart in found:
        ET.fromstring(chart)  # noqa: S314 (our own)
    joined = "".join(found)
    for title in ("arena by gpt", "arena by gpt: score by length", "arena by local", "held-out by main"):
        assert f">{title}<" in joined
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_a_small_screen_scrolls_tables_and_nothing_else(page: str) -> None:
    outside = re.sub(r'<div class="scroll"><table.*?</table></div>', "", page, flags=re.DOTALL)
    tables = re.findall(r"<table[^>]*>.*?</table>", outside, flags=re.DOTALL)
    # Only the metrics of a stage, which are two narrow columns.
    assert all(table.startswith("<table><tr><td>") for table in tables)
    assert "@media (max-width: 480px)" in page
    assert 'name="viewport" content="width=device-width' in page


def content_of(**changes: Any) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "system": "a",
        "score": None,
        "interval": None,
        "items": 0,
        "common": None,
        "difference": None,
        "adjusted_p": None,
        "detectable": None,
        "length_controlled": None,
        "invalid_share": 1.0,
        "counts": {"refused": 2.0},
        "answers": {"too_long": 0.0},
        "turns": [],
        "position": None,
        "judged_by_own_reward": False,
    }
    column = {
        "benchmark": "mt",
        "kind": "MTBench",
        "judge": "gpt",
        "by": "judge",
        "identity": {},
        "identities_differ": True,
        "unit": "points",
        "baseline": None,
        "baseline_answers": "sft",
        "items": 2,
        "common_items": 0,
        "cells": [cell | changes],
        "win_rates": {"systems": [], "rates": []},
    }
    system = {
        "name": "a",
        "label": "A",
        "form": "Model",
        "members": [],
        "choices": {},
        "judged_only_by_own_reward": False,
    }
    return {"systems": [system], "columns": [column], "agreement": [], "resamples": 100}


def test_a_system_without_a_valid_verdict_has_no_score() -> None:
    view = view_of(content_of())
    assert view.lines[0].scores == (None,)
    assert view.heads[0].benchmark == "mt (MT-Bench)"
    assert view.heads[0].judge == "judge gpt"
    assert view.heads[0].notes == (
        "points from 1 to 10",
        "2 items",
        "invalid 100.0%",
        "against sft",
        "the judge's settings differ between systems",
    )
    assert view.details[0][1] == (("system", "refused"), ("A", "2"))
    assert view.matrices == ()


def test_a_length_controlled_score_is_named_by_its_form() -> None:
    interval = {"low": 40.0, "high": 60.0}
    view = view_of(
        content_of(
            score=50.0,
            interval=interval,
            items=2,
            length_controlled={"form": "LC-minimal", "score": 47.5, "interval": interval},
        )
    )
    cell = view.lines[0].scores[0]
    assert cell is not None
    assert cell.lines == ("40.00 to 60.00", "LC-minimal 47.50 (40.00 to 60.00)")
    assert any("LC-minimal has no regulariser" in note for note in view.notes)


def test_a_browser_shows_tables_of_benchmarks_in_wide_and_narrow_windows(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    assert_readable(tmp_path / "report.html")
