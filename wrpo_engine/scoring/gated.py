"""ArmoRM's head: several objectives, weighed by a gate that reads the prompt (arXiv:2406.12845).

With h the hidden state of the last token and g that of the token where the prompt ends:

    rewards = W h                                        one per objective, no bias
    gate    = logit_scale * softmax(MLP(g) / temperature)    MLP: linear layers with ReLU between them
    score   = sum(gate * (rewards @ reward_transform_matrix))

The weights are those of a published checkpoint of the architecture LlamaForRewardModelWithGating: `model.*` is a Llama
backbone, `regression_layer.weight` [O, H], `reward_transform_matrix` [O, O], `gating.layers.N.weight` and `.bias`,
`gating.logit_scale` [1]. No code of the checkpoint's repository is run. The head computes in float32 regardless of the
backbone's format. In bfloat16, scores of about 0.15 are 0.0005 apart, and different responses would tie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wrpo_engine.errors import ConfigError
from wrpo_engine.loading.files import ModelDirectory

ARCHITECTURE = "LlamaForRewardModelWithGating"

ARMORM_OBJECTIVES = (
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)
"""The published model's objectives in the order of its regression layer; its config does not name them."""


@dataclass(frozen=True, kw_only=True)
class GatingConfig:
    """The head's part of config.json, with the defaults of the published architecture."""

    hidden_size: int
    num_objectives: int = 19
    temperature: float = 10.0
    hidden_dim: int = 1024
    num_hidden: int = 3

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> GatingConfig:
        """Return the head's settings in the content of config.json."""
        return cls(
            hidden_size=int(config["hidden_size"]),
            num_objectives=int(config.get("num_objectives", 19)),
            temperature=float(config.get("gating_temperature", 10)),
            hidden_dim=int(config.get("gating_hidden_dim", 1024)),
            num_hidden=int(config.get("gating_n_hidden", 3)),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every weight of the head."""
        shapes: dict[str, tuple[int, ...]] = {
            "regression_layer.weight": (self.num_objectives, self.hidden_size),
            "reward_transform_matrix": (self.num_objectives, self.num_objectives),
            "gating.logit_scale": (1,),
        }
        sizes = [self.hidden_size, *[self.hidden_dim] * self.num_hidden, self.num_objectives]
        for index, (inputs, outputs) in enumerate(pairwise(sizes)):
            shapes[f"gating.layers.{index}.weight"] = (outputs, inputs)
            shapes[f"gating.layers.{index}.bias"] = (outputs,)
        return shapes


class GatedHead(nn.Module):
    """Score and objectives from two hidden states a row. B = rows, H = hidden size, O = objectives."""

    def __init__(self, weights: Mapping[str, Tensor], config: GatingConfig) -> None:
        super().__init__()
        self._temperature = config.temperature
        self._num_layers = config.num_hidden + 1
        # Buffers: they follow the module to its device and are never trained.
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor.float())

    def forward(self, last_BH: Tensor, prompt_end_BH: Tensor) -> Tensor:  # noqa: N803 (shape suffixes)
        """Return [B, 1 + O] in float32: the score, then the objectives."""
        weights = dict(self.named_buffers())
        rewards = F.linear(last_BH.float(), weights["regression_layer_weight"])
        gate = prompt_end_BH.float()
        for index in range(self._num_layers):
            name = f"gating_layers_{index}"
            gate = F.linear(gate, weights[f"{name}_weight"], weights[f"{name}_bias"])
            if index < self._num_layers - 1:
                gate = F.relu(gate)
        gate = F.softmax(gate / self._temperature, dim=-1) * weights["gating_logit_scale"]
        score = (gate * (rewards @ weights["reward_transform_matrix"])).sum(dim=-1, keepdim=True)
        return torch.cat([score, rewards], dim=-1)


def is_gated(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json describes a model with a gated head."""
    architectures = config.get("architectures")
    return isinstance(architectures, list) and ARCHITECTURE in architectures


def objective_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a name for each objective: the config's labels, or those of the published model, or numbers."""
    count = GatingConfig.from_json(config).num_objectives
    labels: Mapping[str, str] = config.get("id2label") or {}
    named = [labels.get(str(index), f"LABEL_{index}") for index in range(count)]
    if len(labels) == count and len(set(named)) == count and not any(name.startswith("LABEL_") for name in named):
        return tuple(named)
    if count == len(ARMORM_OBJECTIVES):
        return ARMORM_OBJECTIVES
    return tuple(str(index) for index in range(count))


def load_gated_head(directory: ModelDirectory, config: Mapping[str, Any]) -> GatedHead:
    """Read the head's weights; ConfigError names those that are missing or of another shape."""
    settings = GatingConfig.from_json(config)
    shapes = settings.shapes()
    weights = _read(directory, list(shapes))
    if missing := [name for name in shapes if name not in weights]:
        raise _invalid(directory, f"its files hold no weights for {_listed(missing)}")
    wrong = [
        f"{name} is {list(weights[name].shape)} where config.json needs {list(shape)}"
        for name, shape in shapes.items()
        if tuple(weights[name].shape) != shape
    ]
    if wrong:
        raise _invalid(directory, _listed(wrong))
    return GatedHead(weights, settings)


def _read(directory: ModelDirectory, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the named tensors, from one file or from shards."""
    from safetensors import SafetensorError, safe_open

    path = directory.path
    index = path / "model.safetensors.index.json"
    if index.is_file():
        where: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted({path / where[name] for name in names if name in where})
    else:
        files = sorted(path.glob("*.safetensors"))
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                held = set(tensors.keys())
                found |= {name: tensors.get_tensor(name) for name in names if name in held}
        except (SafetensorError, OSError) as error:
            raise _invalid(directory, f"{file.name} cannot be read: {error}") from error
    return found


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _invalid(directory: ModelDirectory, what: str) -> ConfigError:
    hint = f"Use a complete checkpoint of {ARCHITECTURE}, for example RLHFlow/ArmoRM-Llama3-8B-v0.1."
    return directory.invalid(what, hint, code="RewardModelInvalid")
