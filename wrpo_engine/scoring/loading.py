"""From a model's files to the network that scores with it; what is no reward model is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from wrpo_engine.errors import ConfigError
from wrpo_engine.models import ResolvedModel
from wrpo_engine.scoring.gated import is_gated, load_gated_head
from wrpo_engine.scoring.network import Classifier, LinearHead, Network, PackedDecoder, PaddedDecoder
from wrpo_engine.training.layout import Layout, choose_layout


def read_config(model: ResolvedModel) -> Mapping[str, Any]:
    config: Mapping[str, Any] = json.loads((model.path / "config.json").read_text())
    return config


def load_network(model: ResolvedModel, config: Mapping[str, Any], dtype: str, device: torch.device) -> Network:
    """Load a gated multi-objective model or a one-label classifier."""
    torch_dtype = _torch_dtype(dtype, device)
    if is_gated(config):
        from transformers import LlamaModel

        backbone = _from_pretrained(LlamaModel, model, torch_dtype)
        return _decoder(backbone, load_gated_head(model.path, config, model.identity), device)
    from transformers import AutoModelForSequenceClassification
    from transformers.modeling_layers import GenericForSequenceClassification

    classifier = _from_pretrained(AutoModelForSequenceClassification, model, torch_dtype)
    labels = int(classifier.config.num_labels)
    if labels != 1:
        raise _invalid(
            model,
            f"it has {labels} labels, but a reward model must have exactly one",
            "Use a classifier trained with num_labels=1.",
        )
    if isinstance(classifier, GenericForSequenceClassification) and _is_causal(classifier.config):
        return _decoder(classifier.base_model, LinearHead(classifier.score.weight), device)
    return Classifier(classifier.to(device).eval())


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


def _from_pretrained(kind: Any, model: ResolvedModel, dtype: Any) -> Any:
    try:
        loaded, found = kind.from_pretrained(
            str(model.path),
            dtype=dtype,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _invalid(
            model,
            f"it cannot be loaded as a reward model: {(str(error).splitlines() or [type(error).__name__])[0][:300]}",
            "Use a model that AutoModelForSequenceClassification loads, or one with ArmoRM's gated head.",
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise _invalid(
            model,
            f"its files hold no weights for {', '.join(missing[:3])}, so its scores would be random",
            "Use a trained reward model; a base or chat model is none.",
        )
    return loaded


def _torch_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the format of the weights; auto is bfloat16 on a GPU that has it, else float32."""
    if dtype != "auto":
        named: torch.dtype = getattr(torch, dtype)
        return named
    # bfloat16 is several times slower than float32 on CPUs without support for it.
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _invalid(model: ResolvedModel, rule: str, hint: str) -> ConfigError:
    return ConfigError("reward.model", model.identity, rule, hint, code="RewardModelInvalid")
