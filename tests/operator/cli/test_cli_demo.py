"""The demo's pure parts; the demo itself is run by `make demo`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console

from wrpo_operator.cli.demo import benchmark_tables, evaluation_table, sampling_backend
from wrpo_operator.cli.job_log import JobRun, condition

EVALUATION = {
    "num_prompts": 32,
    "mean_reward": {"target": -0.017, "sft": 1.916, "WRPO-DPO": 2.017},
    "win_rates": {
        "target": {"rate": 0.875, "ci_low": 0.719, "ci_high": 0.95},
        "sft": {"rate": 0.547, "ci_low": 0.379, "ci_high": 0.705},
    },
}


def test_the_table_shows_each_models_reward_and_the_last_ones_win_rates() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(evaluation_table(EVALUATION))
    lines = [line.split("│") for line in out.getvalue().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells == [
        ["target", "-0.0170", "87.5%", "71.9% to 95.0%"],
        ["sft", "1.9160", "54.7%", "37.9% to 70.5%"],
        ["WRPO-DPO", "2.0170"],
    ]
    assert "32 held-out prompts" in out.getvalue()
    assert "WRPO-DPO's win rate against it" in out.getvalue()


def cell(system: str, score: float | None, **more: Any) -> dict[str, Any]:
    interval = None if score is None else {"low": score - 5, "high": score + 5}
    return {
        "system": system,
        "score": score,
        "interval": interval,
        "length_controlled": None,
        "invalid_share": 0.0,
    } | more


def test_each_judged_column_is_a_table_with_its_judge_in_the_head() -> None:
    judged = {
        "by": "judge",
        "benchmark": "quickstart",
        "protocol": "AlpacaEval2",
        "judge": "reward",
        "identity": {"model": "reward", "serve_reward": {"model": "storage://models/reward"}},
        "unit": "%",
        "items": 24,
        "cells": [
            cell("target", 50.0, invalid_share=0.25),
            cell("trained", 62.34, length_controlled={"form": "LC-minimal", "score": 58.0, "interval": None}),
            cell("sft", None),
        ],
    }
    systems = [{"name": "target", "label": "target"}, {"name": "trained", "label": "WRPO-DPO"}]
    (table,) = benchmark_tables({"systems": systems, "columns": [{"by": "reward"}, judged]})
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    lines = [line.split("│") for line in out.getvalue().splitlines() if "│" in line]
    assert [[part.strip() for part in line if part.strip()] for line in lines] == [
        ["target", "50.0", "45.0 to 55.0"],
        ["WRPO-DPO", "62.3", "57.3 to 67.3", "LC-minimal 58.0"],
    ]
    assert [line.strip() for line in out.getvalue().splitlines()[:3]] == [
        "benchmark quickstart, protocol AlpacaEval2",
        "judge reward (a served reward)",
        "24 items, score in %, invalid 25.0%",
    ]


def test_only_a_true_condition_counts() -> None:
    job = {
        "status": {
            "conditions": [
                {"type": "Complete", "status": "False"},
                {"type": "Failed", "status": "True", "message": "why"},
            ]
        }
    }
    assert condition(job, "Complete") == {}
    assert condition(job, "Failed")["message"] == "why"
    assert condition({}, "Failed") == {}


def test_the_sampling_backend_is_what_set_up_found(tmp_path: Path) -> None:
    profile = tmp_path / "wrpo-profile.json"
    profile.write_text(json.dumps({"sampling_backend": "Transformers", "reason": "no wheel"}))
    assert sampling_backend(profile) == "Transformers"


def test_without_a_word_from_set_up_vllm_is_used(tmp_path: Path) -> None:
    assert sampling_backend(tmp_path / "absent.json") == "vLLM"


def test_a_failed_job_is_replaced_and_its_failure_names_commands_that_reach_it() -> None:
    failed = json.dumps({"status": {"conditions": [{"type": "Failed", "status": "True", "message": "why"}]}})
    asked: list[tuple[str, ...]] = []

    def kubectl(*arguments: str, stdin: str | None = None) -> str:
        asked.append(arguments[:2])
        return {"get": failed, "logs": "one line\n"}.get(arguments[0], "")

    said: list[str] = []
    with pytest.raises(click.ClickException) as caught:
        JobRun("assets", kubectl, said.append, "--kubeconfig k -n n", "make demo").run("{}")
    assert asked[:3] == [("get", "job"), ("delete", "job"), ("apply", "-f")]
    assert said == ["      one line"]
    assert "failed: why" in caught.value.message
    assert "`kubectl --kubeconfig k -n n logs job/assets`; `make demo` retries." in caught.value.message
