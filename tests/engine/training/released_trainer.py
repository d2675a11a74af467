"""The released training recipe, written plainly and without any of the engine's code.

Padded, concatenated forward passes with an attention mask; whole logits, log_softmax, gather; a second model for the
reference in every step; the losses as the paper writes them; torch's AdamW; Hugging Face's cosine schedule; clipping by
`clip_grad_norm_`; alpha = a_max * step / N. Slow and hungry, which does not matter for a model of two layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PARTS = ("source_chosen_ids", "target_chosen_ids", "rejected_ids")
Row = Mapping[str, list[int]]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters by the paper's names."""

    objective: str = "WRPO-DPO"
    beta: float = 0.1
    alpha_max: float = 0.1
    gamma: float = 0.0
    tau: float = 0.1
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    epochs: int = 1
    rows_per_step: int = 4
    rows_per_forward: int = 2

    @property
    def parts(self) -> tuple[str, ...]:
        return PARTS if self.objective.startswith("WRPO") else PARTS[1:]


@dataclass
class Trace:
    """What happened at every optimizer step, and the weights at the end."""

    steps: list[dict[str, float]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)


def concatenated(rows: Sequence[Row], parts: Sequence[str]) -> dict[str, Tensor]:
    """Return input_ids, attention_mask and labels of all rows' first responses, then all second ones, and so on."""
    sequences = [(row["prompt_ids"], row[part]) for part in parts for row in rows]
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for place, (prompt, response) in enumerate(sequences):
        whole = torch.tensor(prompt + response)
        ids[place, : len(whole)] = whole
        mask[place, : len(whole)] = 1
        labels[place, len(prompt) : len(whole)] = torch.tensor(response)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def log_probs(model: Any, batch: Mapping[str, Tensor], num_parts: int) -> tuple[Tensor, Tensor]:
    """Return summed log-probabilities and token counts of the responses, each [parts, rows]."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    counted = labels != -100
    per_token = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
    return (per_token * counted).sum(1).view(num_parts, -1), counted.sum(1).view(num_parts, -1)


def loss_and_rewards(recipe: Recipe, alpha: float, logp: Tensor, ref: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of every row and the rewards of its responses, [rows] and [parts, rows]."""
    ratio = logp - ref
    match recipe.objective.removeprefix("WRPO-"):
        case "DPO":
            reward = recipe.beta * ratio
        case "SimPO":
            reward = recipe.beta / length * logp
        case _:
            reward = ratio
    if recipe.objective.startswith("WRPO"):
        margin = alpha * reward[0] + (1 - alpha) * reward[1] - reward[2]
    else:
        margin = reward[0] - reward[1]
    if recipe.objective.endswith("IPO"):
        return (margin - 1 / (2 * recipe.tau)) ** 2, reward.detach()
    return -logsigmoid(margin - recipe.gamma), reward.detach()


def micro_batches(rows: Sequence[Row], recipe: Recipe) -> list[list[list[Row]]]:
    """Return the forward passes of every optimizer step of one epoch; the last of each may be smaller."""
    steps = [rows[start : start + recipe.rows_per_step] for start in range(0, len(rows), recipe.rows_per_step)]
    size = recipe.rows_per_forward
    return [[list(step[start : start + size]) for start in range(0, len(step), size)] for step in steps]


def train(model_dir: Path, rows: Sequence[Row], recipe: Recipe) -> Trace:
    """Run the recipe on the rows in their order."""
    from transformers import LlamaForCausalLM, get_cosine_schedule_with_warmup

    policy = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    reference = copy.deepcopy(policy).eval()
    policy.train()
    steps = micro_batches(rows, recipe) * recipe.epochs
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=recipe.weight_decay
    )
    warmup = -(-len(steps) * recipe.warmup_ratio // 1)
    scheduler = get_cosine_schedule_with_warmup(optimizer, int(warmup), len(steps))
    trace = Trace()
    for step, forwards in enumerate(steps):
        alpha = recipe.alpha_max * step / len(steps)
        num_rows = sum(len(forward) for forward in forwards)
        loss = 0.0
        sums = {name: torch.zeros(len(recipe.parts)) for name in ("logps", "rewards")}
        for forward in forwards:
            batch = concatenated(forward, recipe.parts)
            logp, length = log_probs(policy, batch, len(recipe.parts))
            with torch.no_grad():
                ref, _ = log_probs(reference, batch, len(recipe.parts))
            per_row, rewards = loss_and_rewards(recipe, alpha, logp, ref, length)
            share = per_row.sum() / num_rows
            share.backward()
            loss += share.item()
            sums["logps"] += logp.detach().sum(1)
            sums["rewards"] += rewards.sum(1)
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        trace.steps.append(
            {"loss": loss, "alpha": alpha, "learning_rate": rate, "grad_norm": float(norm)}
            | {
                f"{name}_{kind}": float(value) / num_rows
                for name, values in sums.items()
                for kind, value in zip(kinds(recipe), values, strict=True)
            }
        )
    trace.weights = {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}
    return trace


def kinds(recipe: Recipe) -> list[str]:
    """Return what the engine calls the responses."""
    return ["source_chosen", "target_chosen", "rejected"] if len(recipe.parts) == 3 else ["chosen", "rejected"]
