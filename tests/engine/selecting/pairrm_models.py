"""Tiny PairRM checkpoints of random weights, and an independent computation of their logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
PREFIXES = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")


def make_tokenizer(*, has_prefixes: bool = True) -> Any:
    """A byte-level tokenizer with DeBERTa's special tokens, which puts [CLS] and [SEP] around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    if has_prefixes:
        tokenizer.add_tokens(list(PREFIXES))
    return tokenizer


def make_config(*, hidden: int = 64, layers: int = 2, heads: int = 1, **changes: Any) -> Any:
    """The settings of DeBERTa-v3 in small."""
    from transformers import DebertaV2Config

    settings: dict[str, Any] = {
        "vocab_size": len(SPECIALS) + 256 + len(PREFIXES),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    return DebertaV2Config(**settings | changes)


def make_oracle(config: Any, *, seed: int = 0) -> tuple[Any, Any, Any]:
    """An encoder and the two linear layers of the head, of random weights."""
    import torch
    from transformers import DebertaV2Model

    torch.manual_seed(seed)
    encoder = DebertaV2Model(config).eval()
    first = torch.nn.Linear(2 * config.hidden_size, config.hidden_size)
    last = torch.nn.Linear(config.hidden_size, 1)
    return encoder, first, last


def save_pairrm(
    directory: Path,
    *,
    layout: str = "conversion",
    tokenizer: Any = None,
    oracle: Any = None,
    tasks: int = 1,
    **changes: Any,
) -> Any:
    """Save a checkpoint in one of the two published layouts; return its oracle."""
    from safetensors.torch import save_file

    config = make_config(**changes)
    encoder, first, last = oracle = oracle or make_oracle(config)
    tensors = {f"pretrained_model.{name}": tensor.clone() for name, tensor in encoder.state_dict().items()}
    for place, layer in ((1, first), (4, last)):
        tensors |= {f"head_layer.{place}.{name}": tensor.clone() for name, tensor in layer.state_dict().items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (tokenizer or make_tokenizer()).save_pretrained(directory)
    if layout == "conversion":
        ids = {"source_prefix_id": 260, "cand1_prefix_id": 261, "cand2_prefix_id": 262, "cand_prefix_id": 263}
        content = config.to_dict() | {"architectures": ["DebertaV2PairRM"], "n_tasks": tasks, "drop_out": 0.05, **ids}
    else:
        content = {
            "ranker_type": "pairranker",
            "model_type": "deberta",
            "model_name": "microsoft/deberta-v3-large",
            "source_maxlength": 1224,
            "candidate_maxlength": 412,
            "n_tasks": tasks,
            "reduce_type": "linear",
            "drop_out": 0.05,
            "fp16": True,
        }
    (directory / "config.json").write_text(json.dumps(content))
    return oracle


def oracle_ids(
    tokenizer: Any,
    prompt: str,
    left: str,
    right: str,
    *,
    source: int = 1224,
    total: int = 2048,
    fixed: int | None = None,
) -> list[int]:
    """A pair as the published helper encodes it: the tokenizer itself truncates each text."""
    ids = tokenizer(PREFIXES[0] + prompt, max_length=source, truncation=True)["input_ids"]
    room = fixed or (total - len(ids)) // 2
    for prefix, text in ((PREFIXES[1], left), (PREFIXES[2], right)):
        ids = ids + tokenizer(prefix + text, max_length=room, truncation=True)["input_ids"]
    return list(ids)


def oracle_logit(oracle: Any, ids: Sequence[int]) -> float:
    """The logit of one pair, alone, without padding."""
    import torch

    encoder, first, last = oracle
    with torch.inference_mode():
        hidden = encoder(input_ids=torch.tensor([list(ids)])).last_hidden_state[0]
        source, left, right = (hidden[list(ids).index(prefix)] for prefix in (260, 261, 262))
        score = [last(torch.tanh(first(torch.cat([source, side])))) for side in (left, right)]
    return float(score[0] - score[1])
