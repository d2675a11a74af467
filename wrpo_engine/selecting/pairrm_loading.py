"""Loader of PairRM from its published layouts: that of Transformers' conversion and the original one.

Both hold the same tensors. In the conversion (llm-blender/PairRM-hf) config.json describes the encoder. In the original
(llm-blender/PairRM) it describes the ranker, and names the encoder by its hub id; the encoder's shape then follows from
the weights, and its other settings are those of all published DeBERTa-v2 and v3 models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from wrpo_engine.errors import ConfigError, first_line
from wrpo_engine.hub.models import ResolvedModel, tensor_facts, transformers_config
from wrpo_engine.loading.files import CONFIG_FILE, TensorFact
from wrpo_engine.loading.guard import loading
from wrpo_engine.loading.weights import Purpose, check_weights, load_complete
from wrpo_engine.selecting.pairrm_attention import use_fast_attention
from wrpo_engine.selecting.pairrm_network import PairRm

_CODE = "RankerInvalid"
RANK = Purpose(
    "its comparisons",
    code=_CODE,
    hint="Use a trained PairRM (llm-blender/PairRM-hf or llm-blender/PairRM); an encoder or a reward model is not one.",
    unused=re.compile(r"^(lm_head|cls|lm_predictions|mask_predictions|pooler)\."),
)
_ENCODER = "pretrained_model."
_HEAD_SIZE = 64
"""Of attention, in all published DeBERTa-v2 and v3 models."""


def load_pairrm(model: ResolvedModel, dtype: torch.dtype, device: torch.device) -> PairRm:
    """Load the network for inference; ConfigError unless the files hold exactly its weights."""
    facts = tensor_facts(model)
    config = pairrm_config(model, facts)
    check_weights(model.directory, facts, config, PairRm, RANK)

    def refuse(error: BaseException) -> ConfigError:
        return _invalid(model, f"it cannot be loaded as PairRM: {first_line(error)}")

    network: PairRm = load_complete(model.directory, PairRm, RANK, refuse, config=config, dtype=dtype)
    network.to(device).eval()
    use_fast_attention(network.pretrained_model)
    return network


def pairrm_config(model: ResolvedModel, facts: Mapping[str, TensorFact]) -> Any:
    """Return Transformers' configuration of the encoder; ConfigError if the model is no PairRM."""
    content = model.directory.read_object(CONFIG_FILE)
    if "ranker_type" in content:
        return _original(model, content, facts)
    if content.get("model_type") != "deberta-v2":
        raise _invalid(model, f"its {CONFIG_FILE} has the model_type {str(content.get('model_type'))[:80]!r}")
    return transformers_config(model)


def _original(model: ResolvedModel, content: Mapping[str, Any], facts: Mapping[str, TensorFact]) -> Any:
    for name, wanted in (("ranker_type", "pairranker"), ("reduce_type", "linear")):
        if content.get(name, wanted) != wanted:
            raise _invalid(model, f"its {CONFIG_FILE} has {name} {str(content[name])[:80]!r}, not {wanted!r}")
    from transformers import DebertaV2Config

    with loading(lambda error: _invalid(model, f"its weights are not those of DeBERTa: {first_line(error)}")):
        settings = _settings(facts)
        stated = {name: content[name] for name in settings if name in content}
        return DebertaV2Config(**settings | stated, n_tasks=int(content.get("n_tasks", 1)))


def _settings(facts: Mapping[str, TensorFact]) -> dict[str, Any]:
    """Return the settings of an encoder by its tensors; KeyError names one that every encoder has."""
    shapes = {name.removeprefix(_ENCODER): fact.shape for name, fact in facts.items() if name.startswith(_ENCODER)}
    vocabulary, embedding = shapes["embeddings.word_embeddings.weight"]
    layers = {int(found.group(1)) for name in shapes if (found := re.match(r"encoder\.layer\.(\d+)\.", name))}
    intermediate, hidden = shapes["encoder.layer.0.intermediate.dense.weight"]
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "embedding_size": embedding,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, hidden // _HEAD_SIZE),
        "type_vocab_size": shapes.get("embeddings.token_type_embeddings.weight", (0,))[0],
        "position_biased_input": "embeddings.position_embeddings.weight" in shapes,
        "max_position_embeddings": shapes.get("embeddings.position_embeddings.weight", (512,))[0],
        "relative_attention": True,
        "position_buckets": shapes["encoder.rel_embeddings.weight"][0] // 2,
        "norm_rel_ebd": "layer_norm" if "encoder.LayerNorm.weight" in shapes else "none",
        "share_att_key": "encoder.layer.0.attention.self.pos_key_proj.weight" not in shapes,
        "pos_att_type": ["p2c", "c2p"],
        "layer_norm_eps": 1e-7,
    }
    if "encoder.conv.conv.weight" in shapes:
        settings |= {"conv_kernel_size": shapes["encoder.conv.conv.weight"][2], "conv_act": "gelu"}
    return settings


def _invalid(model: ResolvedModel, rule: str) -> ConfigError:
    return model.directory.invalid(rule, RANK.hint, code=_CODE)
