"""Losses of preference optimisation as pure functions (arXiv:2412.03187).

B = rows (triples) in the micro-batch, K = preferred responses of a row. All inputs are log-probabilities *summed* over
the tokens of a response, in fp32 or wider: a bf16 sum over hundreds of tokens has no correct digit after the point.
Every loss is returned per row, shape [B]; the caller takes the mean over the *global* batch.

Each objective is a reward of a response, a weighted margin, and a function of that margin. `FORMS` of
`wrpo_engine.training.objectives.preference` holds the reward and the function of every form:

    with r(y) = log pi(y|x) - log pi_ref(y|x):
    DPO forms     reward = beta * r(y), or beta / |y| * r(y) when length-normalised
    SimPO forms   reward = beta / |y| * log pi(y|x), no reference
    IPO forms     reward = r(y), or r(y) / |y| with ipo_mean

    margin = sum_k w_k * reward(y_k) - reward(y_l), the w_k on the simplex

WRPO has two preferred responses, from the sources and from the target: w = (alpha, 1 - alpha).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PerResponse:
    """One number for every response of every row: log-probabilities, token counts or rewards."""

    preferred: Tensor
    """[B, K]; WRPO has the columns y_ws and y_wt, the baselines have one column, the chosen response."""
    rejected: Tensor
    """[B]; y_l."""

    def __post_init__(self) -> None:
        # [B] against [B, 1] would broadcast to [B, B] and still give a number.
        if self.preferred.ndim != 2 or self.rejected.ndim != 1 or len(self.preferred) != len(self.rejected):
            shapes = f"{tuple(self.preferred.shape)} and {tuple(self.rejected.shape)}"
            raise ValueError(f"responses must be preferred [B, K] and rejected [B]; got {shapes}")


def wrpo_weights(alpha: float) -> tuple[float, float]:
    """Return the weights of (y_ws, y_wt)."""
    return (alpha, 1.0 - alpha)


def weighted_margin(rewards: PerResponse, weights: Sequence[float]) -> Tensor:
    """Return sum_k w_k * reward(y_k) - reward(y_l), shape [B].

    Raise ValueError unless there are K weights, none negative, with sum 1 (within 1e-9).
    """
    if len(weights) != rewards.preferred.shape[1]:
        raise ValueError(f"{rewards.preferred.shape[1]} preferred responses need as many weights; got {len(weights)}")
    if min(weights) < 0 or not math.isclose(sum(weights), 1.0, rel_tol=0, abs_tol=1e-9):
        raise ValueError(f"weights must be non-negative with sum 1; got {tuple(weights)}")
    weights_K = torch.tensor(weights, dtype=rewards.preferred.dtype, device=rewards.preferred.device)
    return (rewards.preferred * weights_K).sum(dim=1) - rewards.rejected


def log_ratios(policy: PerResponse, reference: PerResponse) -> PerResponse:
    """Return r(y) = log pi(y|x) - log pi_ref(y|x) of every response, in nats; raise ValueError for unequal shapes."""
    if policy.preferred.shape != reference.preferred.shape:
        shapes = f"{tuple(policy.preferred.shape)} and {tuple(reference.preferred.shape)}"
        raise ValueError(f"policy and reference must have one shape; got {shapes}")
    return PerResponse(
        preferred=policy.preferred - reference.preferred,
        rejected=policy.rejected - reference.rejected,
    )


def scaled(values: PerResponse, factor: float, lengths: PerResponse | None = None) -> PerResponse:
    """Return factor * value, or factor / |y| * value when lengths are given."""
    if lengths is None:
        return PerResponse(preferred=factor * values.preferred, rejected=factor * values.rejected)
    return PerResponse(
        preferred=factor * values.preferred / lengths.preferred,
        rejected=factor * values.rejected / lengths.rejected,
    )


def logistic_loss(margin: Tensor, *, gamma: float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """Return -(1 - e) * log sigmoid(margin - gamma) - e * log sigmoid(-(margin - gamma)), [B]; e: label smoothing."""
    logits = margin - gamma
    if label_smoothing == 0.0:
        return -F.logsigmoid(logits)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def squared_loss(margin: Tensor, *, tau: float) -> Tensor:
    """Return (margin - 1 / (2 tau))^2, shape [B]."""
    return (margin - 1 / (2 * tau)) ** 2


def nll(policy_logps: Tensor, lengths: Tensor) -> Tensor:
    """Return -log pi(y|x) / |y| of one response per row, shape [B]: the optional SFT term."""
    return -policy_logps / lengths
