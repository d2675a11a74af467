"""The catalogue of public facts: its parameters are counted again from its configs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wrpo_engine.contract.types import is_hub_id
from wrpo_operator.sizing.catalogue import known_commit, known_commits, known_facts, known_models

JsonObject = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]
UNPINNED = {
    "deepseek-ai/DeepSeek-Coder-V2-Instruct-0724",
    "deepseek-ai/DeepSeek-V2-Chat-0628",
    "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
    "llm-blender/PairRM-hf",
}
"""What the examples and README read from the hub at commits that are not known."""
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


def test_a_commit_is_known_by_at_least_two_files_whatever_the_case_of_the_hub_id() -> None:
    commits = known_commits()
    assert [name for name, known in commits.items() if known.files < 2] == []
    assert [name for name, known in commits.items() if not re.fullmatch(r"[0-9a-f]{40}", known.commit)] == []
    assert known_commit("qwen/qwen2-72b-instruct") == known_commit("Qwen/Qwen2-72B-Instruct") is not None
    assert known_commit("org/of-mine") is None


def examples() -> Iterator[tuple[str, JsonObject]]:
    """Yield (place, object) of everything in the examples and in README's experiment that the hub has."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples").rglob("*.yaml")}
    blocks = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    texts |= {f"README.md[{index}]": block for index, block in enumerate(blocks)}
    for name, text in texts.items():
        for document in yaml.safe_load_all(text):
            yield from ((name, found) for found in on_the_hub(document))


def hub_id(section: JsonObject) -> str | None:
    """Return what a section reads from the hub."""
    ids = [section[key] for key in ("model", "dataset") if isinstance(section.get(key), str)]
    return next(filter(is_hub_id, ids), None)


def on_the_hub(value: object) -> Iterator[JsonObject]:
    if isinstance(value, dict):
        if hub_id(value) is not None:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from on_the_hub(item)


def test_models_and_data_sets_of_the_examples_are_pinned_to_the_catalogue_and_only_unknown_ones_are_not() -> None:
    found = list(examples())
    assert {name for name, _ in found} == {
        "README.md[0]", "ablations.yaml", "fusion.yaml", "main.yaml", "objectives.yaml", "paper-wrpo-dpo.yaml",
        "sources.yaml",
    }  # fmt: skip
    wrong = [(name, each) for name, each in found if each.get("revision") != known_commit(str(hub_id(each)))]
    assert wrong == []
    assert {hub_id(each) for _, each in found if "revision" not in each} == UNPINNED
