"""Weights of models by the perplexity of a text, as PackLLM has them. Logits [models, tokens, vocabulary]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_GRID = 21
"""Shares that PackOpt tries for each model: 0, 0.05, ..., 1."""


@dataclass(frozen=True, slots=True)
class Read:
    """The tokens of a text that have a loss."""

    targets: Tensor
    """Ids, the first token left out, [tokens - 1]."""
    counted: Tensor
    """Whether a token counts: the end of the text does not, wherever it occurs."""


def read_of(ids: Sequence[int], eos: int | None) -> Read:
    """Return the tokens of a text that follow another one."""
    targets = torch.tensor(list(ids[1:]), dtype=torch.long)
    return Read(targets, torch.ones_like(targets, dtype=torch.bool) if eos is None else targets != eos)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each target in nats; logits [tokens, vocabulary] of the positions before them."""
    return logits.logsumexp(-1) - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def mean_loss(losses: Tensor, counted: Tensor) -> float:
    """Return the mean over the tokens that count; 0 if none does, so that all models are equal."""
    number = int(counted.sum())
    return float(losses[counted].double().sum()) / number if number else 0.0


def loss_of(logits: Tensor, read: Read) -> float:
    """Return the mean cross-entropy of a text under logits [tokens, vocabulary]."""
    return mean_loss(token_losses(logits[:-1], read.targets), read.counted)


def similarity_weights(losses: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return softmax(-loss / temperature): with temperature 1 a weight is proportional to 1 / perplexity."""
    weights: list[float] = torch.softmax(-torch.tensor(losses, dtype=torch.float64) / temperature, dim=0).tolist()
    return weights


def best_first(losses: Sequence[float]) -> list[int]:
    """Return the models by their losses, the least first; of equal ones the first."""
    return sorted(range(len(losses)), key=lambda model: losses[model])


def optimal_weights(logits: Sequence[Tensor], losses: Sequence[float], read: Read) -> list[float]:
    """Return PackOpt's weights: models are added by their losses, each with the share that gives the least loss."""
    order = best_first(losses)
    weights = [0.0] * len(losses)
    weights[order[0]] = 1.0
    current = logits[order[0]]
    for model in order[1:]:
        shares = [step / (_GRID - 1) for step in range(_GRID)]
        tried = [loss_of(share * current + (1 - share) * logits[model], read) for share in shares]
        share = shares[tried.index(min(tried))]
        current = share * current + (1 - share) * logits[model]
        weights = [weight * share for weight in weights]
        weights[model] = 1 - share
    return weights


def fused(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of logits of one shape."""
    total = torch.zeros_like(logits[0])
    for one, weight in zip(logits, weights, strict=True):
        total += weight * one
    return total
