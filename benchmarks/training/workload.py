"""Workload of training: a model of random weights and rows of random tokens, determined by seeds."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEED = 7
LEARNING_RATE = 1e-4
BETA = 0.1
ALPHA_MAX = 0.1
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
MAX_GRAD_NORM = 1.0
CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A Llama with tied embeddings."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts: fixed where `spread` is 0, else log-normal around the median and clipped."""

    median: int
    spread: float = 0.0
    """Standard deviation of the logarithm."""
    low: int = 1
    high: int = CONTEXT

    def draw(self, generator: random.Random) -> int:
        if self.spread == 0.0:
            return self.median
        return min(self.high, max(self.low, round(generator.lognormvariate(math.log(self.median), self.spread))))

    @property
    def text(self) -> str:
        if self.spread == 0.0:
            return str(self.median)
        return f"log-normal, median {self.median}, sigma {self.spread:g}, {self.low}..{self.high}"


@dataclass(frozen=True, slots=True)
class Case:
    """Shape of training."""

    name: str
    model: ModelSize
    prompt: Lengths
    response: Lengths
    triples_per_step: int
    triples_per_pass: int
    """Rows of one forward and backward pass, equal for both sides."""
    num_responses: int = 3
    """Three for WRPO-DPO's triple, two for DPO's pair."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Case:
        sizes = {"model": ModelSize(**value["model"])}
        lengths = {name: Lengths(**value[name]) for name in ("prompt", "response")}
        return cls(**{**value, **sizes, **lengths})

    @property
    def text(self) -> str:
        return f"prompt {self.prompt.text}; response {self.response.text}"


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its responses as token ids; the rejected response is the last."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]


def make_rows(case: Case, num_rows: int) -> list[Row]:
    """Return the rows, equal for every side. Pairs are the triples without their first response."""
    generator = random.Random(SEED)
    rows = []
    for _ in range(num_rows):
        prompt = _tokens(generator, case.prompt.draw(generator), case.model.vocabulary)
        count = max(3, case.num_responses)
        responses = [_tokens(generator, case.response.draw(generator), case.model.vocabulary) for _ in range(count)]
        rows.append(Row(prompt, tuple(responses[-case.num_responses :])))
    return rows


def _tokens(generator: random.Random, count: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(generator.randrange(3, vocabulary) for _ in range(count))


def passes(rows: Sequence[Row], triples_per_pass: int) -> list[Sequence[Row]]:
    """Split a step's rows into forward passes, in their order."""
    return [rows[start : start + triples_per_pass] for start in range(0, len(rows), triples_per_pass)]


def llama_config(size: ModelSize, **changes: Any) -> Any:
    """Return the configuration of a Llama with tied embeddings; `changes` replace its settings."""
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaConfig(**{**settings, **changes})


def llama(size: ModelSize) -> Any:
    """Return the model on the current device, with weights determined by the seed."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(SEED)
    return LlamaForCausalLM(llama_config(size))


def save_model(directory: Path, size: ModelSize) -> None:
    """Save the model that both sides load."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    llama(size).save_pretrained(directory, safe_serialization=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps of a worker for a case: warm-up, timed steps, and optionally steps for memory."""

    case: Case
    model_dir: str
    warmup_steps: int
    timed_steps: int
    measure_memory: bool

    @property
    def num_optimizer_steps(self) -> int:
        return self.warmup_steps + self.timed_steps

    @property
    def num_steps(self) -> int:
        """Return the number of steps, with two for memory: one makes the gradients, the next is measured with them."""
        return self.num_optimizer_steps + (2 if self.measure_memory else 0)

    def rows(self) -> list[Row]:
        return make_rows(self.case, self.num_steps * self.case.triples_per_step)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        return cls(**{**value, "case": Case.from_json(value["case"])})


def clock_of(specification: Mapping[str, Any]) -> Callable[[], float]:
    """Return the wall clock, or this process's processor time, which other processes affect less."""
    return time.process_time if specification.get("processor_time", False) else time.perf_counter


def alpha(step: int, num_steps: int) -> float:
    return ALPHA_MAX * step / num_steps
