"""The models of examples and README can be loaded: their architecture is known, or their code is allowed and pinned.

Nothing is downloaded: the table below states the public `model_type` of each repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).parents[2]
MODEL_TYPES = {
    "01-ai/Yi-1.5-34B-Chat": "llama",
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": "llama",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": "llama",
    "Qwen/Qwen2-72B-Instruct": "qwen2",
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2",
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2",
    "Skywork/Skywork-Reward-V2-Llama-3.1-8B": "llama",
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": "qwen3",
    "deepseek-ai/DeepSeek-Coder-V2-Instruct-0724": "deepseek_v2",
    "deepseek-ai/DeepSeek-V2-Chat-0628": "deepseek_v2",
    "google/gemma-2-27b-it": "gemma2",
    "google/gemma-2-9b-it": "gemma2",
    "internlm/internlm2_5-20b-chat": "internlm2",
    "meta-llama/Meta-Llama-3-70B-Instruct": "llama",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama",
    "microsoft/Phi-3-medium-4k-instruct": "phi3",
    "mistralai/Mistral-Large-Instruct-2407": "mistral",
}
"""`model_type` in each repository's config.json."""
COMMIT = re.compile(r"[0-9a-f]{40}")
PAPER = ROOT / "examples" / "paper-wrpo-dpo.yaml"


def texts() -> Iterator[tuple[str, str]]:
    """Yield the YAML of every example and of README, by name."""
    for path in sorted((ROOT / "examples").rglob("*.yaml")):
        yield path.name, path.read_text()
    for index, block in enumerate(
        re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    ):
        yield f"README.md[{index}]", block


def models_of(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object that names a model of the hub."""
    if isinstance(value, list):
        for item in value:
            yield from models_of(item)
    if isinstance(value, dict):
        if isinstance(value.get("model"), str) and not value["model"].startswith(("/", "storage://")):
            yield value
        for key, item in value.items():
            # A ranker is PairRM, which `wrpo_engine.selecting` loads by itself.
            if key != "ranker":
                yield from models_of(item)


MODELS = [
    (f"{name}: {model['model']}", model)
    for name, text in texts()
    for document in yaml.safe_load_all(text)
    for model in models_of(document)
]


def why_not_loadable(model: Mapping[str, Any]) -> str | None:
    """Return why Transformers and vLLM cannot load a model, or None."""
    model_type = MODEL_TYPES[model["model"]]
    if model_type in CONFIG_MAPPING_NAMES and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    if not model.get("trustRemoteCode"):
        return f"{model_type} needs the code of its repository: set trustRemoteCode and revision"
    if not COMMIT.fullmatch(str(model.get("revision"))):
        return "trustRemoteCode needs a revision of 40 digits"
    return None


def test_the_examples_of_the_paper_and_of_the_readme_are_found() -> None:
    names = [name for name, _ in MODELS]
    assert sum(name.startswith(PAPER.name) for name in names) == 11
    assert sum(name.startswith("README.md[0]") for name in names) == 4


@pytest.mark.parametrize("model", [model for _, model in MODELS], ids=[name for name, _ in MODELS])
def test_every_model_has_a_known_architecture_or_pinned_code(model: Mapping[str, Any]) -> None:
    assert model["model"] in MODEL_TYPES, "state its model_type in MODEL_TYPES"
    assert why_not_loadable(model) is None


def test_a_model_without_a_known_architecture_needs_its_code_and_a_commit() -> None:
    model = {"model": "internlm/internlm2_5-20b-chat"}
    assert why_not_loadable(model) == "internlm2 needs the code of its repository: set trustRemoteCode and revision"
    unpinned = {**model, "trustRemoteCode": True, "revision": "main"}
    assert why_not_loadable(unpinned) == "trustRemoteCode needs a revision of 40 digits"
    assert why_not_loadable({**unpinned, "revision": "0" * 40}) is None


def test_the_source_that_the_paper_has_and_the_example_only_shows_can_be_added_by_removing_comment_signs() -> None:
    text = PAPER.read_text()
    assert "internlm" not in str(yaml.safe_load(text))
    shown = re.findall(r"^    # (- name: internlm.*|  (?:model|revision|trustRemoteCode): .*)$", text, re.MULTILINE)
    (source,) = yaml.safe_load("\n".join(shown))
    assert source["model"] == "internlm/internlm2_5-20b-chat"
    assert why_not_loadable(source) is None
