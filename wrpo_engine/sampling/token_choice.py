"""Penalties and limits of the choice of a token for the Transformers backend, in vLLM's order. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wrpo_engine.contract.sampling import TokenChoiceFields
from wrpo_engine.sampling.rows import Row


def penalised(logits: torch.Tensor, rows: Sequence[Row], choice: TokenChoiceFields) -> torch.Tensor:
    """Return logits [rows, vocabulary] after the penalties of the tokens of each row's prompt and response.

    The argument is not changed.
    """
    repetition, presence, frequency = (
        choice.repetition_penalty,
        choice.presence_penalty,
        choice.frequency_penalty,
    )
    if (repetition, presence, frequency) == (1.0, 0.0, 0.0):
        return logits
    changed = logits.clone()
    for place, row in enumerate(rows):
        scores = changed[place]
        if repetition != 1.0:
            seen = torch.tensor(sorted(set(row.ids)), device=logits.device)
            found = scores[seen]
            scores[seen] = torch.where(found > 0, found / repetition, found * repetition)
        if row.tokens and (presence or frequency):
            used, counts = torch.unique(torch.tensor(row.tokens, device=logits.device), return_counts=True)
            scores[used] -= frequency * counts.to(scores.dtype) + presence
    return changed


def limited(scaled: torch.Tensor, choice: TokenChoiceFields) -> torch.Tensor:
    """Return logits [rows, vocabulary], divided by the temperature, without tokens that minP and topK exclude.

    Tokens that tie with the k-th likeliest one stay.
    """
    if choice.min_p > 0:
        probabilities = torch.softmax(scaled, dim=-1)
        least = choice.min_p * probabilities.amax(dim=-1, keepdim=True)
        scaled = scaled.masked_fill(probabilities < least, -torch.inf)
    if 0 < choice.top_k < scaled.shape[-1]:
        least = scaled.topk(choice.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    return scaled
