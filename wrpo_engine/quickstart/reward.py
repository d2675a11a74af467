"""Bradley-Terry training of the quickstart's small reward model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wrpo_engine.quickstart.finetune import learning_rate_factor, quick_products
from wrpo_engine.quickstart.preferences import Comparison

MAX_TOKENS = 96
ROWS_AT_ONCE = 16
"""Rows of one forward pass. Those of a batch differ much in length, so a pass over all of them is half padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRecipe:
    """How the reward model is trained."""

    epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 1e-4
    seed: int = 17


def bradley_terry_loss(scores: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(score(chosen) - score(rejected)); scores [B, 1 + R], the chosen one first."""
    return -F.logsigmoid(scores[:, :1] - scores[:, 1:]).mean()


def score_batch(model: torch.nn.Module, tokenizer: Any, batch: Sequence[Comparison]) -> Tensor:
    """Return the scores [B, 1 + R] of each comparison's responses, the chosen one first."""
    answers = [(each.prompt, text) for each in batch for text in (each.chosen, *each.rejected)]
    rows = tokenizer(
        [prompt for prompt, _ in answers],
        [text for _, text in answers],
        truncation="longest_first",
        max_length=MAX_TOKENS,
    )
    by_length = sorted(range(len(answers)), key=lambda row: len(rows["input_ids"][row]))
    scores = []
    for start in range(0, len(answers), ROWS_AT_ONCE):
        alike = by_length[start : start + ROWS_AT_ONCE]
        inputs = tokenizer.pad(
            {name: [values[row] for row in alike] for name, values in rows.items()}, return_tensors="pt"
        )
        scores.append(model(**inputs).logits.float().flatten())
    return torch.cat(scores)[torch.tensor(by_length).argsort()].reshape(len(batch), -1)


def train_reward(
    model: torch.nn.Module,
    tokenizer: Any,
    rounds: Sequence[Sequence[Comparison]],
    recipe: RewardRecipe,
    *,
    on_step: Callable[[int, int, float], None],
) -> None:
    """Train in place. `rounds` holds the comparisons of each epoch: new worse responses each time."""
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    plan: list[list[Comparison]] = []
    for comparisons in rounds:
        by_length = sorted(comparisons, key=_width)
        size = recipe.batch_size
        epoch = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        plan.extend(epoch[index] for index in torch.randperm(len(epoch), generator=generator).tolist())
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, len(plan), 0.1))
    products = quick_products()
    model.train()
    for step, batch in enumerate(plan):
        with products:
            scores = score_batch(model, tokenizer, batch)
        loss = bradley_terry_loss(scores)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        on_step(step + 1, len(plan), loss.item())
    model.eval()


def _width(comparison: Comparison) -> int:
    """Return the characters of its longest row: batches of like lengths need little padding."""
    return len(comparison.prompt) + max(len(text) for text in (comparison.chosen, *comparison.rejected))


def accuracies(model: torch.nn.Module, tokenizer: Any, held_out: Sequence[Comparison]) -> dict[str, float]:
    """Return the share of worse responses that score below the real one, over all and by kind."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    with torch.inference_mode():
        for start in range(0, len(held_out), 16):
            batch = held_out[start : start + 16]
            scores = score_batch(model, tokenizer, batch)
            wins = scores[:, :1] > scores[:, 1:]
            for row, each in enumerate(batch):
                for column, kind in enumerate(each.kinds):
                    for name in ("all", kind):
                        total[name] += 1
                        right[name] += int(wins[row, column])
    return {name: right[name] / total[name] for name in sorted(total)}
