"""The catalogue of public facts: its parameters are counted again from its configs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from wrpo_operator.sizing.catalogue import known_facts, known_models

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = [name for name, known in known_models().items() if known.published is not None]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_config_counts_the_published_parameters(name: str) -> None:
    known = known_models()[name]
    assert known.facts.parameters == known.published


def test_every_model_of_the_published_run_is_known() -> None:
    spec = yaml.safe_load((ROOT / "examples" / "paper-wrpo-dpo.yaml").read_text(encoding="utf-8"))["spec"]
    models = [spec["target"]["model"], spec["reward"]["model"], *(source["model"] for source in spec["sources"])]
    assert [model for model in models if known_facts(model) is None] == []


def test_the_case_of_a_hub_id_is_ignored_and_other_models_are_unknown() -> None:
    known = known_facts("qwen/qwen2-72b-instruct")
    assert known is not None
    assert (known.model, known.date) == ("Qwen/Qwen2-72B-Instruct", "2026-11-29")
    assert known_facts("qwen/qwen2-72b-instruct-of-mine") is None


def test_a_model_with_its_own_code_is_marked() -> None:
    coded = [name for name, known in known_models().items() if known.facts.needs_code]
    assert coded == ["internlm/internlm2_5-20b-chat"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("deepseek-ai/DeepSeek-V2-Chat-0628", 21.4),
        ("Qwen/Qwen3-235B-A22B", 22.1),
        ("Qwen/Qwen3-30B-A3B", 3.3),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 12.9),
    ],
)
def test_active_parameters_of_experts_are_those_that_a_token_passes_through(name: str, billions: float) -> None:
    known = known_facts(name)
    assert known is not None
    assert known.facts.active_parameters is not None
    assert known.facts.active_parameters / 1e9 == pytest.approx(billions, abs=0.1)
