"""Workload of scoring: the shape of the model and of its prompts and responses."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESPONSES = 5
"""Responses of one model to one prompt (arXiv:2412.03187)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model of random weights and pairs of random words; lengths in tokens, each drawn evenly from its range."""

    name: str
    layers: int
    hidden: int
    prompts: int
    prompt_tokens: tuple[int, int]
    response_tokens: tuple[int, int]


CASES = (
    Case(name="short", layers=2, hidden=64, prompts=60, prompt_tokens=(16, 48), response_tokens=(4, 48)),
    Case(name="long-prompt", layers=6, hidden=256, prompts=3, prompt_tokens=(1200, 1800), response_tokens=(8, 64)),
    Case(name="paper-mean", layers=6, hidden=256, prompts=6, prompt_tokens=(100, 300), response_tokens=(100, 500)),
)
"""short: the demo's size. long-prompt: up to the paper's limit of 1800. paper-mean: the paper's usual lengths."""


def save_model(case: Case, directory: Path) -> None:
    """Save a Llama classifier and a tokenizer of 4096 whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<end>": 1, **{f"w{index}": index + 2 for index in range(4094)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))  # noqa: S106 (a token of text)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")  # noqa: S106
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <end> {% endfor %}"
    heads = max(1, case.hidden // 64)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=case.hidden,
        intermediate_size=case.hidden * 8 // 3,
        num_hidden_layers=case.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def pairs_of(case: Case) -> list[tuple[str, str]]:
    draw = random.Random(0)

    def words(bounds: tuple[int, int]) -> str:
        return " ".join(f"w{draw.randrange(4094)}" for _ in range(draw.randint(*bounds)))

    prompts = [words(case.prompt_tokens) for _ in range(case.prompts)]
    return [(prompt, words(case.response_tokens)) for prompt in prompts for _ in range(RESPONSES)]


def one_at_a_time(directory: Path, pairs: list[tuple[str, str]]) -> Any:
    """Return a function that scores as published scripts do: template, tokenizer and model for each response."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()

    def score() -> list[float]:
        scores = []
        for prompt, response in pairs:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            with torch.inference_mode():
                scores.append(float(model(**inputs).logits[0, 0]))
        return scores

    return score
