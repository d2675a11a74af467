"""ArmoRM's head against the published formula, written out a second time with the model's own modules."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from engine_support import llama_config, make_tokenizer
from safetensors.torch import load_file, save_file
from torch import nn

from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.scoring import stage
from wrpo_engine.scoring.encoding import last_occurrence
from wrpo_engine.scoring.gated import ARMORM_OBJECTIVES, objective_names
from wrpo_engine.scoring.reward_model import RewardScorer

OBJECTIVES, HIDDEN, GATE = 5, 32, 24
PAIRS = [("hi", "yo"), ("hi", "a rather longer answer"), ("another question?", "x"), ("hi", "yo"), ("hi", "")]


class Gating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [HIDDEN, GATE, GATE, OBJECTIVES]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.logit_scale = nn.Parameter(torch.ones(1) * 1.5)


class Reference(nn.Module):
    """The published architecture with parameters of the published names."""

    def __init__(self, config: Any) -> None:
        from transformers import LlamaModel

        super().__init__()
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(HIDDEN, OBJECTIVES, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.randn(OBJECTIVES, OBJECTIVES))
        self.gating = Gating()

    def score(self, ids: list[int], prompt_end: int) -> tuple[float, list[float]]:
        with torch.inference_mode():
            hidden = self.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            objectives = self.regression_layer(hidden[-1])
            gate = hidden[prompt_end]
            for layer in list(self.gating.layers)[:-1]:
                gate = torch.relu(layer(gate))
            gate = torch.softmax(self.gating.layers[-1](gate) / 7.0, dim=0) * self.gating.logit_scale[0]
            transformed = sum(objectives[i] * self.reward_transform_matrix[i] for i in range(OBJECTIVES))
            return float((gate * transformed).sum()), objectives.tolist()


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(3)
    model = Reference(llama_config(make_tokenizer(), hidden_size=HIDDEN)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Far from zero, so that a dropped term shows.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def gated_dir(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as it is published: two shards and an index, and code of its own that must not run."""
    path = tmp_path_factory.mktemp("gated")
    make_tokenizer().save_pretrained(path)
    tensors = {name: tensor.detach().clone() for name, tensor in reference.state_dict().items()}
    shards = {
        "model-00001-of-00002.safetensors": {n: t for n, t in tensors.items() if n.startswith("model.")},
        "model-00002-of-00002.safetensors": {n: t for n, t in tensors.items() if not n.startswith("model.")},
    }
    for file, content in shards.items():
        save_file(content, path / file, metadata={"format": "pt"})
    weight_map = {name: file for file, content in shards.items() for name in content}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = reference.model.config.to_dict() | {
        "architectures": ["LlamaForRewardModelWithGating"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
        "num_objectives": OBJECTIVES,
        "gating_temperature": 7,
        "gating_hidden_dim": GATE,
        "gating_n_hidden": 2,
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "modeling_custom.py").write_text("raise RuntimeError('code of the checkpoint ran')\n")
    return path


def scorer(path: Path, **changes: Any) -> RewardScorer:
    options: dict[str, Any] = {"max_length": 512, "batch_tokens": 4096}
    return RewardScorer(ResolvedModel(path, "gated", None), **options | changes)


def expected(reference: Reference, prompt: str, response: str) -> tuple[float, list[float]]:
    tokenizer = make_tokenizer()
    head = tokenizer(f"<|im_start|>user\n{prompt}", add_special_tokens=False)["input_ids"]
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"
    return reference.score(tokenizer(text, add_special_tokens=False)["input_ids"], len(head))


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_scores_and_objectives_equal_the_published_formula(
    gated_dir: Path, reference: Reference, batch_tokens: int
) -> None:
    rewards = scorer(gated_dir, batch_tokens=batch_tokens).rewards(PAIRS)
    for (prompt, response), reward in zip(PAIRS, rewards, strict=True):
        score, objectives = expected(reference, prompt, response)
        assert reward.score == pytest.approx(score, abs=1e-5)
        assert reward.objectives == pytest.approx(objectives, abs=1e-5)
    assert len({round(reward.score, 4) for reward in rewards}) == 4


def test_padded_rows_give_the_same(gated_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wrpo_engine.scoring import loading
    from wrpo_engine.scoring.network import PaddedDecoder

    packed = scorer(gated_dir).score(PAIRS)
    monkeypatch.setattr(loading, "PackedDecoder", PaddedDecoder)
    padded = scorer(gated_dir)
    assert type(padded._network) is PaddedDecoder
    assert padded.score(PAIRS) == pytest.approx(packed, abs=1e-5)


def test_every_objective_is_a_column(gated_dir: Path, make_ctx: Any, commit_artifact: Any) -> None:
    prompts = pl.DataFrame({"prompt_id": ["p"], "prompt": ["hi"]})
    samples = pl.DataFrame(
        {
            "prompt_id": ["p", "p"],
            "source": ["s", "s"],
            "sample_index": [0, 1],
            "text": ["yo", "no"],
            "finish_reason": ["stop", "stop"],
        }
    )
    inputs: dict[str, ArtifactRef] = {
        "prompts": commit_artifact("prepare", {"sft.parquet": prompts}),
        "samples/s": commit_artifact("sample/s", {"parts/part-00000.parquet": samples}),
    }
    ctx = make_ctx({"stage": "score", "reward": {"name": str(gated_dir)}}, inputs, stage="score/s")
    metrics = stage.run(ctx).metrics
    rows = pl.read_parquet(ctx.output.committed().file("parts/part-00000.parquet"))
    rewards = scorer(gated_dir).rewards([("hi", "yo"), ("hi", "no")])
    for index in range(OBJECTIVES):
        column = rows[f"objective/{index}"]
        assert column.dtype == pl.Float64
        assert column.to_list() == pytest.approx([reward.objectives[index] for reward in rewards], abs=1e-6)
        assert metrics[f"mean_objective/{index}"] == pytest.approx(column.mean())


def test_objectives_are_named_by_the_config_or_by_the_published_model() -> None:
    base = {"hidden_size": 8}
    assert objective_names(base) == ARMORM_OBJECTIVES
    assert objective_names(base | {"num_objectives": 19, "id2label": {"0": "LABEL_0"}}) == ARMORM_OBJECTIVES
    labels = {"0": "kind", "1": "true"}
    assert objective_names(base | {"num_objectives": 2, "id2label": labels}) == ("kind", "true")
    assert objective_names(base | {"num_objectives": 2}) == ("0", "1")


def changed(gated_dir: Path, to: Path, change: Any) -> Path:
    shutil.copytree(gated_dir, to)
    file = to / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return to


def test_missing_and_misshapen_weights_are_named(gated_dir: Path, tmp_path: Path) -> None:
    missing = changed(gated_dir, tmp_path / "a", lambda tensors: tensors.pop("gating.layers.1.bias"))
    with pytest.raises(ConfigError, match=r"hold no weights for gating\.layers\.1\.bias") as error:
        scorer(missing)
    assert error.value.code == "RewardModelInvalid"

    def reshape(tensors: dict[str, torch.Tensor]) -> None:
        tensors["regression_layer.weight"] = torch.zeros(4, HIDDEN)

    with pytest.raises(ConfigError, match=r"regression_layer\.weight is \[4, 32\] where config\.json needs \[5, 32\]"):
        scorer(changed(gated_dir, tmp_path / "b", reshape))


def test_a_row_without_the_prompt_s_end_is_named(gated_dir: Path) -> None:
    with pytest.raises(DataError) as error:
        scorer(gated_dir, max_length=10, truncation="Left").rewards([("hi", "z" * 60)], ["row 7"])
    assert error.value.code == "RewardPromptEndMissing"
    assert error.value.message.startswith("row 7: the tokens that end the prompt")


@pytest.mark.parametrize("truncation", ["Right", "Left"])
@pytest.mark.parametrize(("prompt", "response"), [("p" * 90, "yes"), ("hi", "z" * 90), ("p" * 90, "z" * 90)])
def test_a_row_that_is_too_long_keeps_the_border_of_its_turns(
    gated_dir: Path, truncation: Any, prompt: str, response: str
) -> None:
    made = scorer(gated_dir, max_length=40, truncation=truncation)
    (encoded,) = made._encoder.encode([(prompt, response)])
    text = make_tokenizer().decode(encoded.ids)
    border = "<|im_end|>\n<|im_start|>assistant\n"
    kept_prompt, found, kept_response = text.partition(border)
    assert found
    assert encoded.truncated
    assert len(encoded.ids) == 40
    # The end of the prompt or its beginning, as asked for, and the beginning of the response.
    assert f"<|im_start|>user\n{prompt}".endswith(kept_prompt) == (truncation == "Left" or len(prompt) < 12)
    assert f"{response}<|im_end|>\n".startswith(kept_response)
    assert made.rewards([(prompt, response)])[0].truncated


def test_the_last_place_of_the_pattern_counts() -> None:
    assert last_occurrence([1, 2, 3, 1, 2, 4], [1, 2]) == 3
    assert last_occurrence([1, 2], [2, 1]) is None
