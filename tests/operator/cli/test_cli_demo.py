"""The demo's pure parts; the demo itself is run by `make demo`."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from wrpo_operator.cli.demo import condition, evaluation_table, sampling_backend

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
