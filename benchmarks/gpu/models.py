"""Models of random weights on disk, with a tokenizer of bytes that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.training.workload import SEED, ModelSize, llama_config

END = "<end>"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
"""Chat template; a prompt gets the opening of the assistant's turn."""
_PROMPT = "{% if add_generation_prompt %}assistant: {% endif %}"


def byte_tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer with one token for each byte; the other ids have texts that no text is encoded to."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"t{index}" for index in range(len(words), vocabulary)]
    backend = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=words[0], eos_token=END)
    tokenizer.chat_template = TEMPLATE + _PROMPT
    return tokenizer


def save_model(directory: Path, size: ModelSize, dtype: str, *, context: int, is_classifier: bool = False) -> None:
    """Save a Llama of random weights and its tokenizer; a classifier has one label."""
    import torch
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

    changes = {"tie_word_embeddings": not is_classifier, "num_labels": 1, "bos_token_id": None, "eos_token_id": 1}
    config = llama_config(size, max_position_embeddings=context, **changes)
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = (LlamaForSequenceClassification if is_classifier else LlamaForCausalLM)(config)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    del model
    # vLLM's engine, another process, needs the memory.
    torch.cuda.empty_cache()
    byte_tokenizer(size.vocabulary).save_pretrained(directory)
