"""Short supervised fine-tuning of one small model on one machine, for the quickstart's derived models.

This is not the engine's training stage: no distribution, no checkpoints, no metrics file. It only has to be short and
repeatable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
_PROCESSOR = Path("/proc/cpuinfo")
_BFLOAT16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of processors that multiply bfloat16; the last one is Arm's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Token ids of a rendered prompt and of the response with its end-of-turn."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is fine-tuned."""

    epochs: int
    learning_rate: float
    batch_size: int = 16
    trained_layers: int
    """Layers counted from the top; those below and the embeddings stay as they are, which halves the cost."""
    warmup_ratio: float = 0.1
    seed: int = 17


def multiplies_bfloat16(processor: str) -> bool:
    """Return whether the text of /proc/cpuinfo describes a processor that multiplies bfloat16."""
    return not _BFLOAT16_UNITS.isdisjoint(processor.split())


def quick_products() -> torch.autocast:
    """Return a context of products in bfloat16 if this processor has them, which halves the time of training.

    Weights, their gradients and the optimizer's state stay in float32. Without such units bfloat16 is slower than
    float32, so nothing changes there. The models differ a little between the two, as between numbers of threads.
    """
    enabled = _PROCESSOR.exists() and multiplies_bfloat16(_PROCESSOR.read_text())
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def batches(examples: Sequence[Example], recipe: Recipe) -> list[list[Example]]:
    """Return all epochs' batches: alike in length, for little padding, and in an order that the seed fixes."""
    generator = torch.Generator().manual_seed(recipe.seed)
    result: list[list[Example]] = []
    for _ in range(recipe.epochs):
        by_length = sorted(examples, key=lambda example: (len(example), example.prompt, example.response))
        epoch = [by_length[start : start + recipe.batch_size] for start in range(0, len(by_length), recipe.batch_size)]
        result.extend(epoch[index] for index in torch.randperm(len(epoch), generator=generator).tolist())
    return result


def learning_rate_factor(step: int, total: int, warmup_ratio: float) -> float:
    """Return the share of the peak rate at `step` (0 is the first): linear warm-up, then a cosine down to 0."""
    warmup = max(1, round(total * warmup_ratio))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def collate(batch: Sequence[Example], padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return input ids, attention mask and labels, [B, T], padded on the right; labels cover the responses alone."""
    width = max(len(example) for example in batch)
    ids = torch.full((len(batch), width), padding)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    labels = torch.full((len(batch), width), IGNORED)
    for row, example in enumerate(batch):
        tokens = torch.tensor(example.prompt + example.response)
        ids[row, : len(example)] = tokens
        mask[row, : len(example)] = 1
        labels[row, len(example.prompt) : len(example)] = tokens[len(example.prompt) :]
    return ids, mask, labels


def answer_loss(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the mean negative log-likelihood of the responses' tokens; only their logits are computed."""
    ids, mask, labels = batch
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    chosen = targets != IGNORED
    return F.cross_entropy(model.lm_head(hidden[chosen]), targets[chosen])


def freeze_below(model: Any, trained_layers: int) -> list[torch.nn.Parameter]:
    """Freeze all but the top `trained_layers` and the last norm; return what is trained."""
    model.requires_grad_(False)
    layers = model.model.layers
    for layer in layers[len(layers) - trained_layers :]:
        layer.requires_grad_(True)
    model.model.norm.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def finetune(
    model: Any,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    padding: int,
    on_step: Callable[[int, int, float], None],
) -> float:
    """Fine-tune in place; return the mean loss of the last tenth of the steps."""
    torch.manual_seed(recipe.seed)
    parameters = freeze_below(model, recipe.trained_layers)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    plan = batches(examples, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, len(plan), recipe.warmup_ratio)
    )
    losses: list[float] = []
    products = quick_products()
    model.train()
    for step, batch in enumerate(plan):
        with products:
            loss = answer_loss(model, collate(batch, padding))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.item())
        on_step(step + 1, len(plan), losses[-1])
    model.eval()
    model.requires_grad_(True)
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
