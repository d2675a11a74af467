"""`wrpo-engine compare` on experiments with benchmarks and judges."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluation_support import PROMPTS, Cells
from support.browser import assert_readable

from wrpo_engine.comparison.command import main
from wrpo_engine.comparison.length_control import details_of
from wrpo_engine.comparison.published import published_note, published_row
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.evaluation import EvaluatedBenchmark, EvaluatedSystem, EvaluateParams
from wrpo_engine.evaluation import stage
from wrpo_engine.stage import StageContext

MakeCtx = Callable[..., StageContext]
Commit = Callable[..., ArtifactRef]
Evaluate = Callable[..., str]
TARGET = EvaluatedSystem(name="target", label="target")
TRAINED = EvaluatedSystem(name="trained", label="WRPO-DPO", uses_reward=True)
MOA = EvaluatedSystem(
    name="moa", label="moa", form="Mixture", answers="mixture", members=("target",), choices={"aggregator": "big"}
)
HELD_OUT = EvaluatedBenchmark(name="held-out", kind="HeldOutReward", rewards=("main",))
ARENA = EvaluatedBenchmark(name="arena", kind="ArenaHard", protocol="ArenaHard", judges=("gpt",))
ITEMS = [(f"q{n}", [f"question {n}"]) for n in range(6)]
LOW: list[float | None] = [0.0, 0.5, 0.0, 0.5, 0.0, 0.5]
HIGH: list[float | None] = [1.0, 1.0, 0.5, 1.0, 1.0, 1.0]


@pytest.fixture
def evaluate(make_ctx: MakeCtx, commit_artifact: Commit, tmp_path: Path) -> Evaluate:
    """Evaluate in a storage of its own: `evaluate(name, {system: values}, ...)` -> the artifact's directory."""

    def run(name: str, values: Mapping[str, Sequence[float | None]], **more: Any) -> str:
        root = tmp_path / name
        cells = Cells(lambda *args, **options: commit_artifact(*args, root=root, **options))
        systems = [system for system in (TARGET, MOA, TRAINED) if system.name in values]
        benchmarks: Sequence[EvaluatedBenchmark] = more.get("benchmarks", (HELD_OUT, ARENA))
        cells.prompts()
        cells.bench("arena", ITEMS)
        lines = "".join(json.dumps({"step": n, "loss": 0.5, "margin": 0.1 * n}) + "\n" for n in range(1, 6))
        model = commit_artifact("train", {"metrics.jsonl": lines}, root=root)
        for system in systems:
            about = {"inputs": {"model": model}} if system is TRAINED else {}
            if HELD_OUT in benchmarks:
                scores = {key: 0.1 * index + len(system.name) for index, (key, _) in enumerate(PROMPTS)}
                texts = {key: [f"{system.name} {key}"] for key, _ in PROMPTS}
                cells.answers(system.name, "held-out", texts, role=system.answers, **about)
                cells.grades(system.name, "held-out", scores)
            answers = {item: ["x" * (5 + len(system.name))] for item, _ in ITEMS}
            cells.answers(system.name, "arena", answers, role=system.answers, **about)
            rows = [(f"q{n}", value, 2.0, value is not None) for n, value in enumerate(values[system.name])]
            for judge in more.get("judges", ARENA.judges):
                about_judge = {"about": more.get("about", {"model": "m"}), **more.get("verdicts", {})}
                cells.verdicts(system.name, "arena", rows, judge=judge, **about_judge)
        params = EvaluateParams(
            systems=tuple(systems),
            benchmarks=tuple(benchmarks),
            subject="trained",
            opponents=("target",),
            resamples=100,
        )
        ctx = make_ctx(params, cells.inputs, root=root)
        stage.run(ctx)
        return str(ctx.output.directory)

    return run


def compared(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--out", str(tmp_path / "out"), "--resamples", "200"]) == 0
    content: dict[str, Any] = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    return content


def csv_rows(tmp_path: Path) -> dict[str, dict[str, str]]:
    text = (tmp_path / "out" / "comparison.csv").read_text(encoding="utf-8")
    return {row["system"]: row for row in csv.DictReader(io.StringIO(text))}


def test_benchmarks_of_two_experiments_are_compared_on_the_same_items(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = evaluate("one", {"target": LOW, "trained": LOW})
    high = evaluate("two", {"target": LOW, "moa": HIGH, "trained": [*HIGH[:5], None]})
    content = compared(tmp_path, f"dpo={low}", f"wrpo={high}", "--baseline", "dpo")
    assert [row["name"] for row in content["rows"]] == ["target", "moa", "dpo", "wrpo"]
    (table,) = content["benchmarks"]
    assert (table["benchmark"], table["judge"], table["baseline"], table["common_items"]) == ("arena", "gpt", "dpo", 5)
    assert table["rows"]["wrpo"]["outcomes"][0]["values"] == HIGH[:5]
    rows = csv_rows(tmp_path)
    assert float(rows["dpo"]["arena/gpt/score"]) == 25.0
    assert float(rows["dpo"]["arena/gpt/common_score"]) == 20.0
    assert float(rows["wrpo"]["arena/gpt/score"]) == pytest.approx(90.0)
    assert float(rows["wrpo"]["arena/gpt/difference"]) == pytest.approx(70.0)
    assert (rows["wrpo"]["arena/gpt/wins"], rows["wrpo"]["arena/gpt/judged"]) == ("5", "5")
    assert rows["dpo"]["arena/gpt/difference"] == ""
    # A mixture reads and writes with its member.
    assert (rows["moa"]["arena/gpt/generated"], rows["moa"]["arena/gpt/read"]) == ("2.0", "14.0")
    printed = " ".join(capsys.readouterr().out.split())
    assert "arena WR" in printed
    assert "arena: judge m; 6 items, 5 of them judged for every row. Differences are from dpo." in printed
    assert "Invalid verdicts: 0.0% to 16.7%." in printed
    assert "moa: aggregator big." in printed


def test_a_style_controlled_score_has_a_column_and_a_metric(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controlled = {"sc2025_score": 58.0, "sc2025_score_low": 50.0, "sc2025_score_high": 66.0}
    verdicts = {"metrics": controlled, "details": {"length_control": details_of("SC", "sc2025_score", {})}}
    one = evaluate("one", {"target": LOW, "trained": HIGH}, verdicts=verdicts)
    metrics = json.loads((Path(one) / "manifest.json").read_text())["metrics"]
    bounds = [metrics[f"sc_arena_gpt{side}"] for side in ("_low", "", "_high")]
    assert bounds == [50.0, 58.0, 66.0]
    compared(tmp_path, f"wrpo={one}")
    row = csv_rows(tmp_path)["wrpo"]
    assert (row["arena/gpt/sc"], row["arena/gpt/lc"]) == ("58.0", "")
    printed = " ".join(capsys.readouterr().out.split())
    assert "arena SC" in printed
    assert "arena LC" not in printed
    assert "SC is Arena-Hard v2.0's style-controlled score" in printed


def test_a_further_system_has_its_held_out_score_and_training_metrics_are_found(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    content = compared(tmp_path, f"wrpo={evaluate('one', {'target': LOW, 'moa': HIGH, 'trained': HIGH})}")
    rows = {row["name"]: row for row in content["rows"]}
    assert {name: row["mean"] for name, row in rows.items()} == {
        "target": pytest.approx(6.1),
        "moa": pytest.approx(3.1),
        "wrpo": pytest.approx(7.1),
    }
    assert rows["moa"]["models_resident"] == 2
    assert (rows["wrpo"]["training_steps"], rows["wrpo"]["margin_slope"]) == (5, pytest.approx(0.1))


def test_all_files_show_benchmarks_and_the_page_escapes_the_judge(evaluate: Evaluate, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> a_b"
    compared(tmp_path, f"wrpo={evaluate('one', {'target': LOW, 'trained': HIGH}, about={'model': hostile})}")
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert_readable(tmp_path / "out" / "comparison.html")
    assert "<script" not in page
    assert "judge &lt;script&gt;alert(1)&lt;/script&gt; a_b" in page
    assert "arena: score by length" in page
    markdown = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "| arena WR | arena difference | arena detectable | arena characters | arena tokens |" in markdown
    tex = (tmp_path / "out" / "comparison.tex").read_text(encoding="utf-8")
    lines = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in lines}) == 1
    assert r"91.67" in tex


def test_two_judges_have_their_own_columns_and_their_agreement(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ARENA.model_copy(update={"judges": ("gpt", "local")})
    location = evaluate("one", {"target": LOW, "trained": HIGH}, benchmarks=(HELD_OUT, both), judges=("gpt", "local"))
    content = compared(tmp_path, f"wrpo={location}")
    assert [table["judge"] for table in content["benchmarks"]] == ["gpt", "local"]
    assert content["agreements"][0]["agreement"]["kendall"] == 1.0
    printed = " ".join(capsys.readouterr().out.split())
    assert "arena by gpt WR" in printed
    assert "arena, gpt and local: Kendall's tau 1 (1 to 1) over 2 systems on 6 items; 100% of 6 pairs" in printed


def test_runs_of_one_system_are_one_row_of_a_benchmark(evaluate: Evaluate, tmp_path: Path) -> None:
    runs = [evaluate(name, {"target": LOW, "trained": values}) for name, values in (("a", LOW), ("b", HIGH))]
    compared(tmp_path, f"wrpo={','.join(runs)}")
    row = csv_rows(tmp_path)["wrpo"]
    assert float(row["arena/gpt/score"]) == pytest.approx((25.0 + 100 * 5.5 / 6) / 2)


def test_experiments_without_held_out_prompts_are_compared_on_benchmarks(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = evaluate("one", {"target": LOW, "trained": HIGH}, benchmarks=(ARENA,))
    content = compared(tmp_path, f"wrpo={location}")
    assert [row["mean"] for row in content["rows"]] == [None, None]
    assert csv_rows(tmp_path)["wrpo"]["mean_reward"] == ""
    assert "mean reward" not in capsys.readouterr().out


def test_benchmarks_with_unlike_judges_are_refused(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    one = evaluate("one", {"target": LOW, "trained": HIGH}, about={"model": "first"})
    two = evaluate("two", {"target": LOW, "trained": HIGH}, about={"model": "second"})
    assert main([f"a={one}", f"b={two}", "--resamples", "100"]) == 64
    assert f"arena by gpt is not the same in {one} and {two}: model is first and second" in capsys.readouterr().err


def test_the_paper_s_figures_are_beside_ours_where_asked(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = evaluate("one", {"target": LOW, "moa": HIGH, "trained": HIGH})
    compared(tmp_path, f"wrpo={location}")
    assert "The paper" not in capsys.readouterr().out
    compared(tmp_path, f"wrpo={location}", "--published")
    rows = csv_rows(tmp_path)
    assert {name: row["arena/gpt/paper"] for name, row in rows.items()} == {"target": "20.6", "moa": "", "wrpo": "46.2"}
    printed = " ".join(capsys.readouterr().out.split())
    assert "The paper on wrpo: The raw win rate is 57.6 in the main table, and 58.0 in the table of sources" in printed
    assert "The paper's judge is gpt-4-1106-preview with the baseline gpt-4-0314" in printed


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("wrpo", "AlpacaEval2", "55.9 / 57.6"),
        ("sources-5", "AlpacaEval2", "53.5 / 53.8"),
        ("dpo/target", "MTBench", "7.23"),
        ("MoA", "AlpacaEval2", "61.3 / 77.2"),
        ("moa", "MTBench", ""),
        ("sft", "HeldOutReward", ""),
    ],
)
def test_published_figures_are_found_by_name(name: str, kind: str, text: str) -> None:
    found = published_row(name)
    assert found is not None
    assert found.text(kind) == text


def test_a_name_that_the_paper_lacks_has_no_figures() -> None:
    assert published_row("mine") is None
    assert published_note("HeldOutReward") == ""
