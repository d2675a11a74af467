"""`wrpo-engine compare` on artifacts: rows, numbers, files and refusals."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import polars as pl
import pytest
from support.browser import assert_readable

from wrpo_engine.comparison.command import main
from wrpo_engine.config import ArtifactRef
from wrpo_engine.evaluation.held_out import SCORED_ANSWERS

Commit = Callable[..., ArtifactRef]
REWARD = {"name": "org/reward", "revision": "0" * 40}
HOSTILE = "<script>alert(1)</script> 50 % & a_b"


def answers(scores: Mapping[str, list[float]], prompts: list[str] | None = None) -> pl.DataFrame:
    rows = []
    for label, values in scores.items():
        for index, value in enumerate(values):
            prompt = (prompts or [f"p{index}" for index in range(len(values))])[index]
            text = f"{label} {value}"
            rows.append((label, prompt, f"question {index}", 0, text, 10 * (index + 1), "stop", value))
    return pl.DataFrame(rows, schema=SCORED_ANSWERS, orient="row")


@pytest.fixture
def evaluate(commit_artifact: Commit, tmp_path: Path) -> Callable[..., str]:
    def commit(number: int, scores: Mapping[str, list[float]], **more: Any) -> str:
        steps = [{"step": n, "loss": 0.6, **values} for n, values in enumerate(more.get("steps", ()), 1)]
        lines = "".join(json.dumps(row) + "\n" for row in steps)
        hash_ = f"{number:016x}"
        trained = commit_artifact("train", {"metrics.jsonl": lines}, hash_=hash_) if steps else None
        ref = commit_artifact(
            "evaluate",
            {
                "answers.parquet": answers(scores, more.get("prompts")),
                "evaluation.json": json.dumps({"labels": list(scores)}),
            },
            hash_=hash_,
            details={"reward": more.get("reward", REWARD)},
            inputs={"model": trained} if trained else None,
        )
        return str(tmp_path / "storage" / ref.stage / ref.hash)

    return commit


TARGET = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
LOW = [0.2, 0.2, 0.4, 0.4, 0.6, 0.6]
HIGH = [0.5, 0.6, 0.6, 0.7, 0.9, 1.0]


@pytest.fixture
def two(evaluate: Callable[..., str]) -> tuple[str, str]:
    steps = [{"margin": 0.1 * n, "margin_source": 0.3 * n, "margin_target": 0.1 * n} for n in range(10)]
    low = evaluate(1, {"target": TARGET, "sft": LOW, "DPO": LOW})
    return low, evaluate(2, {"target": TARGET, "sft": HIGH, "WRPO-DPO": HIGH}, steps=steps)


def test_a_comparison_has_a_row_for_every_model_and_pairs_it_with_the_baseline(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = two
    out = tmp_path / "out"
    seconds = tmp_path / "seconds.json"
    seconds.write_text('{"wrpo": 7200}')
    arguments = [f"dpo={low}", f"wrpo={high}", "--out", str(out), "--gpu-seconds", str(seconds)]
    assert main([*arguments, "--order", "target,dpo,wrpo"]) == 0
    printed = capsys.readouterr().out
    assert "Differences are from dpo, paired on 6 held-out prompts." in " ".join(printed.split())
    found = {row["system"]: row for row in csv.DictReader(io.StringIO((out / "comparison.csv").read_text()))}
    assert list(found) == ["target", "dpo/sft", "wrpo/sft", "dpo", "wrpo"]
    wrpo = found["wrpo"]
    assert float(wrpo["mean_reward"]) == pytest.approx(4.3 / 6)
    assert float(wrpo["difference"]) == pytest.approx((4.3 - 2.4) / 6)
    assert (wrpo["wins"], wrpo["losses"], float(wrpo["sign_test"])) == ("6", "0", 2 / 64)
    assert (wrpo["training_steps"], float(wrpo["gpu_seconds"])) == ("10", 7200.0)
    assert float(wrpo["margin_slope"]) == pytest.approx(0.1)
    assert float(wrpo["margin_slope_half"]) == pytest.approx(0.2)
    assert (found["dpo"]["difference"], found["dpo"]["p_holm"]) == ("", "")
    # Of four differences those of wrpo and its SFT model are the same; no resample is at or below zero.
    assert (float(wrpo["p_one_sided"]), float(found["target"]["p_one_sided"])) == (0.0, 1.0)
    content = json.loads((out / "comparison.json").read_text())
    assert content["rows"][4]["scores"] == [HIGH]
    assert content["reward"] == [REWARD]
    assert content["prompts"] == [f"p{index}" for index in range(6)]
    assert content["ordering"]["kendall"] == pytest.approx(1.0)
    assert "dpo above target" in (out / "comparison.md").read_text()


def test_the_files_show_the_same_table_and_the_page_needs_nothing_from_anywhere(
    two: tuple[str, str], tmp_path: Path
) -> None:
    low, high = two
    assert main([f"{HOSTILE.replace('=', '')}={low}", f"wrpo={high}", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 50 % &amp; a_b" in page
    for mark in ("http:", "https:", "src=", "url(http"):
        assert mark not in page.replace("http://www.w3.org", "")
    for figure in page.split("<figure>")[1:]:
        ET.fromstring(figure.partition("</figure>")[0].replace("xlink:href", "href"))  # noqa: S314 -- our own output
    tex = (tmp_path / "out" / "comparison.tex").read_text()
    assert r"50 \% \& a\_b" in tex
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in rows}) == 1
    table = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert table[0].startswith("| system | runs | mean reward | 95 % interval |")
    assert "GPU hours" not in table[0]


def test_a_browser_shows_the_comparison_in_wide_and_narrow_windows(two: tuple[str, str], tmp_path: Path) -> None:
    low, high = two
    assert main([f"{HOSTILE.replace('=', '')}={low}", f"wrpo={high}", "--out", str(tmp_path / "out")]) == 0
    assert_readable(tmp_path / "out" / "comparison.html")


def test_runs_of_one_system_are_one_row(evaluate: Callable[..., str], tmp_path: Path) -> None:
    runs = [evaluate(number, {"target": TARGET, "DPO": [value + number / 10 for value in LOW]}) for number in (1, 2, 3)]
    other = evaluate(4, {"target": TARGET, "DPO": HIGH})
    assert main([f"dpo={','.join(runs)}", f"wrpo={other}", "--out", str(tmp_path / "out")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]}
    assert {name: row["runs"] for name, row in rows.items()} == {"target": 1, "dpo": 3, "wrpo": 1}
    assert rows["dpo"]["mean"] == pytest.approx(0.6)
    assert (
        "1 run: no training variance is part of the intervals of target, wrpo."
        in (tmp_path / "out" / "comparison.md").read_text()
    )


def test_one_experiment_is_compared_with_its_target(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"wrpo={two[1]}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "system",
        "runs",
        "mean",
        "reward",
        "95",
        "%",
        "interval",
        "difference",
        "95",
        "%",
        "interval",
        "of",
        "it",
        "p",
        "(Holm)",
        "tokens",
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["target", "sft", "wrpo"]
    assert lines[4].startswith("Differences are from target, paired on 6 held-out prompts.")


def test_equal_inputs_give_equal_files(two: tuple[str, str], tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert main([f"dpo={two[0]}", f"wrpo={two[1]}", "--out", str(tmp_path / name)]) == 0
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_systems_that_cannot_be_compared_are_refused_with_the_reason(
    evaluate: Callable[..., str], commit_artifact: Commit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = evaluate(1, {"target": TARGET, "DPO": LOW})
    rewarded = evaluate(2, {"target": TARGET, "DPO": LOW}, reward={"name": "org/other"})
    unlike = evaluate(3, {"target": TARGET, "DPO": HIGH}, prompts=["p0", "p1", "p2", "p3", "p4", "x"])
    apart = evaluate(4, {"target": TARGET, "DPO": HIGH}, prompts=list("abcdef"))
    prepared = commit_artifact("prepare", {"sft.parquet": "text"})
    for arguments, message in [
        ([f"a={one}", f"b={rewarded}"], "were scored by different rewards"),
        ([f"a={one}", f"b={unlike}"], "different held-out prompts; 2 are in one of them only, e.g. p5, x"),
        ([f"a={one}", f"b={apart}", "--allow-unlike-prompts"], "no held-out prompt in common"),
        ([f"a={one}", f"a={one}"], "two systems are named a"),
        ([f"target={one}"], "the system target has the name of a model"),
        ([one], "is no system"),
        ([f"a={one}", "--baseline", "b"], "--baseline names b, which is no row"),
        ([f"a={one}", "--order", "a,c"], "--order names c, which is no row"),
        ([f"a={one}", "--order", "a,a"], "an order has at least two rows, each once"),
        ([f"a={tmp_path}/storage/prepare/{prepared.hash}"], "only those of evaluate can be compared"),
        ([f"a={tmp_path}/nothing"], "is no artifact"),
    ]:
        assert main(arguments) == 64, arguments
        assert message in capsys.readouterr().err
    assert main([f"a={one}", f"b={unlike}", "--allow-unlike-prompts"]) == 0
    assert "paired on 5 held-out prompts" in " ".join(capsys.readouterr().out.split())
