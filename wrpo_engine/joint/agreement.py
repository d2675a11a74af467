"""EVA's choice of the models that count for a token, and the mean of their distributions."""

from __future__ import annotations

import torch
from torch import Tensor


def likeliest(logits: Tensor, k: int) -> Tensor:
    """Return the softmax over the k likeliest tokens of each row, 0 for all others."""
    values, places = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.zeros_like(logits).scatter(-1, places, torch.softmax(values, dim=-1))


def agreeing(probabilities: Tensor, k: int) -> list[bool]:
    """Return which models count: those whose likeliest token is among the k likeliest ones of another model.

    probabilities [models, vocabulary]. If none counts, the ensemble takes all.
    """
    best = probabilities.argmax(dim=-1)
    among = probabilities.topk(min(k, probabilities.shape[-1]), dim=-1).indices
    models = range(len(probabilities))
    return [any(bool((among[other] == best[model]).any()) for other in models if other != model) for model in models]


def ensemble(probabilities: Tensor, k: int) -> Tensor:
    """Return the mean distribution of the models that count, [vocabulary]."""
    kept = agreeing(probabilities, k)
    chosen = probabilities[torch.tensor(kept)] if any(kept) else probabilities
    return chosen.mean(dim=0)
