"""Tiny real models and stage configs for the engine's tests. Weights are random: values mean nothing, laws hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.stage_config import StageConfig

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
EXPERIMENT_HASH = "0123456789abcdef"


def make_tokenizer(
    *,
    template: str | None = CHATML,
    bos: str | None = None,
    eos: str = "<|im_end|>",
    adds_bos: bool = False,
    more_specials: Sequence[str] = (),
) -> Any:
    """A byte-level tokenizer of 256 bytes and a few special tokens: it encodes every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = list(
        dict.fromkeys(["<pad>", "<|im_start|>", "<|im_end|>", *([bos] if bos else []), eos, *more_specials])
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos and bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=[token for token in specials if token not in {bos, eos, "<pad>"}],
    )
    tokenizer.chat_template = template
    return tokenizer


def save_tiny_model(directory: Path, *, seed: int = 0, context: int = 512, template: str | None = CHATML) -> Path:
    """Save a two-layer Llama of random weights with the tokenizer above."""
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = make_tokenizer(template=template)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(tokenizer, max_position_embeddings=context))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    return directory


def save_llama(directory: Path, tokenizer: Any, *, seed: int, scale: float = 1.0, **changes: Any) -> Path:
    """Save a Llama of random weights with any tokenizer; `scale` is a factor of its matrices."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(tokenizer, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    return directory


def save_small_model(directory: Path, *, hidden_size: int = 128) -> Path:
    """Save a two-layer Llama of random weights, with heads of a size that vLLM's kernels have."""
    return save_llama(
        directory,
        make_tokenizer(),
        seed=0,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=1,
        head_dim=64,
        tie_word_embeddings=True,
    )


def save_tiny_reward(directory: Path, *, seed: int = 1, num_labels: int = 1, nan: bool = False) -> Path:
    """Save a Llama sequence classifier of random weights; `nan` poisons its head."""
    import torch
    from transformers import LlamaForSequenceClassification

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(llama_config(tokenizer, num_labels=num_labels))
    if nan:
        with torch.no_grad():
            model.score.weight.fill_(float("nan"))
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    return directory


def llama_config(tokenizer: Any, **changes: Any) -> Any:
    """Return the configuration of a two-layer Llama for a tokenizer."""
    from transformers import LlamaConfig

    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**settings | changes)


def stage_config(
    params: Mapping[str, Any] | Any,
    inputs: Mapping[str, ArtifactRef] | None = None,
    *,
    stage: str | None = None,
    hash_: str = EXPERIMENT_HASH,
    runtime: Mapping[str, Any] | None = None,
) -> StageConfig:
    """A stage's config file. `stage` is the artifact's stage, for example sample/qwen."""
    dumped = params if isinstance(params, Mapping) else params.model_dump(mode="json")
    return StageConfig.model_validate(
        {
            "experiment": "tests/tiny",
            "output": {"stage": stage or dumped["stage"], "hash": hash_},
            "inputs": {role: ref.model_dump() for role, ref in (inputs or {}).items()},
            "storage": {"kind": "volume"},
            "params": dict(dumped),
            "runtime": dict(runtime or {}),
        }
    )
