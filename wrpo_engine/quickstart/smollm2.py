"""Conversion of SmolLM2-135M-Instruct from its GGUF file, and removal of layers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from wrpo_engine.loading.files import ModelDirectory
from wrpo_engine.loading.weights import TRAIN, require_complete

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONFIG_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
PADDING_TOKEN = "<|endoftext|>"  # noqa: S105
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's turns without the system message that its own template puts in front of every conversation."""


def load_gguf(directory: Path) -> tuple[Any, Any]:
    """Return the model in float32, free of every trace of its quantisation, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with read_once():
        tokenizer = AutoTokenizer.from_pretrained(str(directory), gguf_file=GGUF_NAME)
        loaded, found = AutoModelForCausalLM.from_pretrained(
            str(directory), gguf_file=GGUF_NAME, dtype=torch.float32, output_loading_info=True
        )
    # Its own file pads with the end-of-turn token, which makes padding indistinguishable from an end of turn.
    tokenizer.pad_token = PADDING_TOKEN
    require_complete(ModelDirectory(directory, GGUF_NAME, "quick start"), found, TRAIN)
    fields = {name: getattr(loaded.config, name) for name in _CONFIG_FIELDS}
    model = LlamaForCausalLM(LlamaConfig(**fields, pad_token_id=tokenizer.pad_token_id)).to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


@contextmanager
def read_once() -> Iterator[None]:
    """Let transformers parse the file and build the table of names once.

    It parses the 49,152 tokens for the tokenizer, the configuration and the weights, and builds the table for each
    module of the model. Both are most of the time.
    """
    import gguf

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, original in originals.items():
            setattr(gguf, name, functools.cache(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def drop_layers(model: Any, dropped: Sequence[int]) -> None:
    """Remove layers in place; the others keep their order and weights."""
    layers = list(model.model.layers)
    if outside := [index for index in dropped if not 0 <= index < len(layers)]:
        raise ValueError(f"layers to drop are {outside}: the model has layers 0 to {len(layers) - 1}")
    kept = [layer for index, layer in enumerate(layers) if index not in set(dropped)]
    for position, layer in enumerate(kept):
        layer.self_attn.layer_idx = position
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)


def save(model: Any, tokenizer: Any, directory: Path, *, chat_template: str | None = None) -> None:
    """Write a Hugging Face model directory, readable by all users."""
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for path in directory.iterdir():
        path.chmod(0o644)
