"""Loader of a reward model's network from its files; errors name the model that is not a reward model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from wrpo_engine.errors import ConfigError, first_line
from wrpo_engine.hub.client import section_of
from wrpo_engine.hub.models import ResolvedModel, tensor_facts, transformers_config
from wrpo_engine.loading.exact_attention import load_arguments
from wrpo_engine.loading.files import CONFIG_FILE
from wrpo_engine.loading.guard import loading
from wrpo_engine.loading.weights import SCORE, Purpose, check_weights, load_complete
from wrpo_engine.scoring.gated import GatingConfig, is_gated, load_gated_head
from wrpo_engine.scoring.network import Classifier, LinearHead, Network, PackedDecoder, PaddedDecoder
from wrpo_engine.training.batch.layout import Layout, choose_layout


def read_config(model: ResolvedModel) -> Mapping[str, Any]:
    """Return the content of the model's config.json; ConfigError if it cannot be read."""
    return model.directory.read_object(CONFIG_FILE)


def load_network(model: ResolvedModel, config: Mapping[str, Any], dtype: str, device: torch.device) -> Network:
    """Load a gated multi-objective model or a one-label classifier; ConfigError if its files do not hold one."""
    torch_dtype = weights_dtype(dtype, device)
    if is_gated(config):
        from transformers import LlamaModel

        with loading(partial(unloadable, model)):
            head = load_gated_head(model.directory, config)
        check_network(model, config)
        return _decoder(_from_pretrained(LlamaModel, model, torch_dtype, _gated(config)), head, device)
    from transformers import AutoModelForSequenceClassification
    from transformers.modeling_layers import GenericForSequenceClassification

    check_network(model, config)
    classifier = _from_pretrained(AutoModelForSequenceClassification, model, torch_dtype, SCORE)
    if isinstance(classifier, GenericForSequenceClassification) and _is_causal(classifier.config):
        return _decoder(classifier.base_model, LinearHead(classifier.score.weight), device)
    return Classifier(classifier.to(device).eval())


def check_network(model: ResolvedModel, config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the files' headers are those of a gated model or of a one-label classifier."""
    if is_gated(config):
        from transformers import LlamaConfig, LlamaModel

        with loading(partial(unloadable, model)):
            backbone, purpose = LlamaConfig.from_pretrained(str(model.path)), _gated(config)
        check_weights(model.directory, tensor_facts(model), backbone, LlamaModel, purpose)
        return
    from transformers import AutoModelForSequenceClassification

    loaded = transformers_config(model)
    check_weights(model.directory, tensor_facts(model), loaded, AutoModelForSequenceClassification, SCORE)
    if loaded.num_labels != 1:
        raise _invalid(
            model,
            f"it has {loaded.num_labels} labels, but a reward model must have exactly one",
            "Use a classifier trained with num_labels=1.",
        )


def _gated(config: Mapping[str, Any]) -> Purpose:
    """Return the purpose of the backbone of a gated model, whose head is loaded separately."""
    own = dict.fromkeys(GatingConfig.from_json(config).shapes())
    return replace(SCORE, unused=re.compile("|".join(re.escape(name) for name in own) + r"|^(score|lm_head)\."))


def ignored_last_token(config: Mapping[str, Any]) -> int | None:
    """Return the token that decoder classifiers skip at a row's end: the reward is read at the last one before it."""
    pad = (config.get("text_config") or config).get("pad_token_id")
    return None if is_gated(config) or pad is None else int(pad)


def _decoder(backbone: Any, head: nn.Module, device: torch.device) -> Network:
    # On a GPU the padded rows' kernel needs no compilation for each shape, and padding is at most a tenth.
    shares = device.type == "cpu" and choose_layout("auto", backbone.config).layout is Layout.SHARED_PREFIX
    kind = PackedDecoder if shares else PaddedDecoder
    return kind(backbone.to(device).eval(), head.to(device).eval())


def _is_causal(config: Any) -> bool:
    text = config.get_text_config()
    return bool(getattr(text, "is_causal", True)) and not getattr(text, "use_bidirectional_attention", False)


def _from_pretrained(kind: Any, model: ResolvedModel, dtype: Any, purpose: Purpose) -> Any:
    return load_complete(
        model.directory,
        kind,
        purpose,
        partial(unloadable, model),
        dtype=dtype,
        trust_remote_code=model.trust_remote_code,
        **load_arguments(transformers_config(model)),
    )


def unloadable(model: ResolvedModel, error: BaseException) -> ConfigError:
    """Return the error of a reward model that a loader refused."""
    return _invalid(
        model,
        f"it cannot be loaded as a reward model: {first_line(error)}",
        "Use a model that AutoModelForSequenceClassification loads, or one with ArmoRM's gated head. A quantised one "
        f"needs its library; a server can run it ({section_of(model.field)}.endpoint).",
    )


def weights_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the format of the weights; auto is bfloat16 on a GPU that has it, else float32."""
    if dtype != "auto":
        named: torch.dtype = getattr(torch, dtype)
        return named
    # bfloat16 is several times slower than float32 on CPUs without support for it.
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _invalid(model: ResolvedModel, rule: str, hint: str) -> ConfigError:
    return model.directory.invalid(rule, hint, code="RewardModelInvalid")
