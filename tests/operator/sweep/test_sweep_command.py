"""`wrpo sweep plan` and `status`: what they print, and the errors of wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from support.builders import raw_spec

from wrpo_operator.api.sweep_status import parse_sweep_status
from wrpo_operator.cli.main import main
from wrpo_operator.cli.sweep import show_status

KIND = {"apiVersion": "wrpo.ai/v1alpha1", "kind": "WRPOSweep", "metadata": {"name": "paper"}}


def plan(tmp_path: Path, *options: str, **changes: Any) -> Result:
    variants = [
        {"name": "dpo", "set": {"training.objective": "DPO"}},
        {"name": "ipo", "set": {"training.objective": "IPO"}},
    ]
    document = {**KIND, "spec": {"experiment": raw_spec(), "variants": variants, **changes}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return CliRunner().invoke(main, ["sweep", "plan", "-f", str(file), "--no-hub", *options])


def test_the_plan_counts_the_stages_that_run_and_those_that_are_shared(tmp_path: Path) -> None:
    result = plan(tmp_path, "-o", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    kinds = {line["kind"]: (line["needed"], line["run"]) for line in told["kinds"]}
    assert kinds["train"] == (2, 2)
    assert kinds["sample"] == (6, 3)
    assert kinds["sft"] == (2, 1)
    assert told["variants"][1]["own"] == [
        "train",
        "answer/trained--held-out",
        "grade/trained--held-out--main",
        "evaluate",
        "report",
    ]


def test_the_table_ends_with_the_sums(tmp_path: Path) -> None:
    output = plan(tmp_path).output
    assert output.startswith("paper: 2 variants, 2 experiments\n")
    assert "ipo      2        train, answer/trained--held-out" in output
    assert output.endswith("GPU hours are unknown without accelerators: set --accelerators, e.g. h100=4x8.\n")


def test_gpu_hours_are_forecast_for_given_accelerators(tmp_path: Path) -> None:
    automatic = {"training": {"gpusPerNode": None}, "resources": None}
    spec = raw_spec(**automatic, target={"model": "meta-llama/Meta-Llama-3-8B-Instruct"})
    output = plan(tmp_path, "--accelerators", "h100=2x8", "--prompts", "1000", experiment=spec).output
    assert "GPU hours, right within a factor of 2." in output


def test_an_assumed_order_of_sources_is_told(tmp_path: Path) -> None:
    variants = [{"name": "all"}, {"name": "one", "sourcesBy": {"order": "MeanReward", "first": 1}}]
    assert "the plan assumes the order of the list." in plan(tmp_path, variants=variants).output


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an invalid variant": (
        {"variants": [{"name": "x", "set": {"training.bta": 1}}]},
        "WRPOSweep paper cannot be accepted:\n  - Variant x: spec.training.bta is not a known field.",
    ),
    "an unknown field": ({"sedes": [1]}, "  - spec.sedes is not a known field."),
}


@pytest.mark.parametrize("title", FAULTS)
def test_a_fault_ends_the_plan_with_its_message(tmp_path: Path, title: str) -> None:
    changes, message = FAULTS[title]
    result = plan(tmp_path, **changes)
    assert result.exit_code == 1
    assert message in result.output


def test_a_file_without_a_sweep_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    file.write_text("kind: WRPOExperiment\n", encoding="utf-8")
    result = CliRunner().invoke(main, ["sweep", "plan", "-f", str(file)])
    assert result.exit_code == 1
    assert "contains no WRPOSweep (apiVersion wrpo.ai/v1alpha1)." in result.output


def test_the_status_shows_differences_from_the_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": "dpo", "phase": "Succeeded", "experiments": "1/1", "progress": 100, "metrics": {"reward": 0.5}},
        {"name": "ipo", "phase": "Failed", "experiments": "0/1", "progress": 80, "message": "stage train failed"},
        {"name": "wrpo", "phase": "Succeeded", "experiments": "1/1", "progress": 100, "metrics": {"reward": 0.75}},
    ]
    counts = {"total": 3, "succeeded": 2, "failed": 1}
    status = parse_sweep_status({"phase": "Failed", "variants": rows, "experiments": counts})
    show_status("paper", status, "dpo")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["paper", "Failed", "2/3", "experiments", "succeeded,", "1", "failed"]
    assert lines[2] == ["dpo", "Succeeded", "1/1", "100%", "0.5"]
    assert lines[3] == ["ipo", "Failed", "0/1", "80%", "stage", "train", "failed"]
    assert lines[4] == ["wrpo", "Succeeded", "1/1", "100%", "0.75", "(+0.25)"]
