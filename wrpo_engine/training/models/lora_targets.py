"""Selection of the layers that get an adapter.

A layer can have an adapter if it is linear (GPT-2's Conv1D counts as linear) or an embedding. No other module may share
its weight, and PEFT must load its adapter into the same layer. Any other layer is refused by name before the first
step. Its adapter would be trained and then be missing from the merged model, from the exported adapter, or from both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import nn

from wrpo_engine.config import LoraParams
from wrpo_engine.errors import ConfigError

log = logging.getLogger("wrpo_engine")

NAME = "default"
"""PEFT's name of the only adapter of a model."""


def target_names(causal_lm: Any, lora: LoraParams) -> list[str]:
    """Return the full names of the modules that get an adapter; ConfigError names those that cannot have one."""
    layers = _Layers(causal_lm, lora)
    if not lora.target_modules:
        return layers.all_linear()
    targets: list[str] = []
    for target in lora.target_modules:
        named = [name for name in layers.modules if name == target or name.endswith(f".{target}")]
        if not named:
            available = ", ".join(layers.available())
            raise refused(lora, f"{target} matches no layer of the model; available are {available}")
        for why_not in map(layers.why_not, named):
            if why_not is not None:
                raise refused(lora, why_not)
        targets += named
    return list(dict.fromkeys(targets))


def lora_config(lora: LoraParams, modules: Sequence[str], **settings: Any) -> Any:
    """Return PEFT's configuration of an adapter for the named modules."""
    from peft import LoraConfig

    # PEFT declares alpha as int but accepts any number.
    alpha: Any = lora.alpha
    return LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(modules),
        task_type="CAUSAL_LM",
        **settings,
    )


def refused(lora: LoraParams, why: str) -> ConfigError:
    """Return the error of target modules that cannot have an adapter."""
    return ConfigError(
        "training.lora.targetModules",
        list(lora.target_modules),
        why,
        "Name linear layers or the untied input embedding of the model, for example q_proj and v_proj. Leave it out to "
        "select all linear layers but the head.",
    )


class _Layers:
    """A model's modules by name, and whether each can have an adapter."""

    def __init__(self, causal_lm: Any, lora: LoraParams) -> None:
        self._causal_lm = causal_lm
        self._lora = lora
        self.modules: dict[str, nn.Module] = dict(causal_lm.named_modules())
        self._by_weight: dict[int, list[str]] = {}
        for name, module in self.modules.items():
            if isinstance(weight := getattr(module, "weight", None), nn.Parameter):
                self._by_weight.setdefault(id(weight), []).append(name)

    def all_linear(self) -> list[str]:
        """Return all linear layers but the head that can have an adapter, and log the others."""
        head = self._causal_lm.get_output_embeddings()
        linear = [name for name, module in self.modules.items() if _is_linear(module) and module is not head]
        able = [name for name in linear if self.why_not(name) is None]
        if left_out := {_last_part(name) for name in linear} - {_last_part(name) for name in able}:
            log.warning("no adapters for %s: they could not be exported", ", ".join(sorted(left_out)))
        return able

    def available(self) -> list[str]:
        """Return the last parts of the names of all modules that can have an adapter."""
        return sorted({_last_part(name) for name in self.modules if self.why_not(name) is None})

    def why_not(self, name: str) -> str | None:
        """Return the reason why a module cannot have an adapter, or None if it can."""
        module = self.modules[name]
        if module is self._causal_lm.get_output_embeddings():
            return f"the output head {name} cannot have an adapter: its log-probabilities are computed in chunks"
        # Other classes of embeddings do not look up their argument (OPT's positions).
        is_embedding = type(module) is nn.Embedding or module is self._causal_lm.get_input_embeddings()
        if not (is_embedding or _is_linear(module)):
            return f"{name} is a {type(module).__name__}, neither a linear layer nor an embedding"
        sharing = [other for other in self._by_weight.get(id(module.weight), []) if other != name]
        if sharing:
            return (
                f"{name} shares its weight with {', '.join(sharing)} (tie_word_embeddings), so a merged model cannot "
                "have an adapter on one of them alone"
            )
        if self._is_moved(_last_part(name)):
            return f"PEFT interprets {_last_part(name)} as a name of the model's experts and would not find {name}"
        return None

    @cache  # noqa: B019 (the object exists during one call only)
    def _is_moved(self, last_part: str) -> bool:
        """Return whether PEFT interprets a layer's name as the experts' former layers, which now are one tensor."""
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

        config = lora_config(self._lora, [last_part])
        try:
            convert_peft_config_for_transformers(config, model=self._causal_lm, conversions=None)
        except ValueError:
            # PEFT accepts this name only together with others.
            return True
        return set(config.target_modules) != {last_part}


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
