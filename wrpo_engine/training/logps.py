"""Log-probabilities of given tokens from hidden states, without ever holding [tokens, vocabulary] for a batch.

R = response tokens of the micro-batch, D = hidden size, V = vocabulary. Logits exist for one chunk of tokens at a time,
in the forward pass and, computed anew, in the backward pass: peak memory is chunk * V, whatever the batch, the length
or the number of responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LOGITS_PER_CHUNK = 2**24
"""Elements of one chunk's logits: 64 MiB in fp32."""


@dataclass(frozen=True, slots=True)
class HeadScaling:
    """What some architectures do to logits after the head: softcap * tanh(scale * logits / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of_config(cls, config: Any) -> HeadScaling:
        """Read Cohere's logit_scale, Granite's logits_scaling and Gemma-2's final_logit_softcapping."""
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(scale=scale, softcap=float(softcap) if softcap else None)


def chunk_tokens(vocabulary: int, logits_per_chunk: int = LOGITS_PER_CHUNK) -> int:
    return max(1, logits_per_chunk // vocabulary)


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scaling: HeadScaling) -> Tensor:
    """Return the chunk's logits [C, V] in fp32 (or wider): logsumexp over V in bf16 is wrong in the second digit."""
    logits_CV = nn.functional.linear(hidden_CD, weight_VD, bias_V)
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if scaling.scale != 1.0:
        logits_CV = logits_CV * scaling.scale
    if scaling.softcap is not None:
        logits_CV = scaling.softcap * torch.tanh(logits_CV / scaling.softcap)
    return logits_CV


class _SelectedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_R: Tensor,
        scaling: HeadScaling,
        chunk: int,
    ) -> Tensor:
        accumulator = torch.promote_types(hidden_RD.dtype, torch.float32)
        logps_R = torch.empty(len(targets_R), dtype=accumulator, device=hidden_RD.device)
        normalizers_R = torch.empty_like(logps_R)
        for start in range(0, len(targets_R), chunk):
            part = slice(start, start + chunk)
            logits_CV = _logits(hidden_RD[part], weight_VD, bias_V, scaling)
            normalizers_R[part] = torch.logsumexp(logits_CV, dim=-1)
            logps_R[part] = logits_CV.gather(-1, targets_R[part, None]).squeeze(-1) - normalizers_R[part]
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, targets_R, normalizers_R)
        ctx.scaling, ctx.chunk = scaling, chunk
        return logps_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RD, weight_VD, bias_V, targets_R, normalizers_R = ctx.saved_tensors
        scaling: HeadScaling = ctx.scaling
        grad_hidden_RD = torch.empty_like(hidden_RD)
        # The head's gradient sums over all tokens of the batch: fp32, cast once at the end.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=grad_R.dtype) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=grad_R.dtype) if bias_V is not None else None
        for start in range(0, len(targets_R), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits_CV = _logits(hidden_RD[part], weight_VD, bias_V, scaling)
            slope_CV = 1 - (logits_CV / scaling.softcap) ** 2 if scaling.softcap is not None else None
            grad_CV = logits_CV.sub_(normalizers_R[part, None]).exp_().neg_()
            rows = torch.arange(len(grad_CV), device=grad_CV.device)
            grad_CV[rows, targets_R[part]] += 1
            grad_CV *= grad_R[part, None]
            if slope_CV is not None:
                grad_CV *= slope_CV
            if scaling.scale != 1.0:
                grad_CV *= scaling.scale
            low_CV = grad_CV.to(weight_VD.dtype)
            grad_hidden_RD[part] = low_CV @ weight_VD
            if grad_weight_VD is not None:
                if grad_weight_VD.dtype == low_CV.dtype:
                    grad_weight_VD.addmm_(low_CV.T, hidden_RD[part])
                else:
                    grad_weight_VD += low_CV.T @ hidden_RD[part]
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(dim=0)
        return (
            grad_hidden_RD,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if bias_V is None or grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
            None,
        )


def selected_logps(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    *,
    bias_V: Tensor | None = None,
    scaling: HeadScaling | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return log softmax(hidden @ weight^T)[target] of every token, shape [R], in fp32 or wider."""
    if hidden_RD.ndim != 2 or targets_R.shape != hidden_RD.shape[:1]:
        raise ValueError(f"need hidden [R, D] and targets [R]; got {tuple(hidden_RD.shape)}, {tuple(targets_R.shape)}")
    size = chunk or chunk_tokens(weight_VD.shape[0])
    apply: Any = _SelectedLogps.apply
    logps_R: Tensor = apply(hidden_RD, weight_VD, bias_V, targets_R, scaling or HeadScaling(), size)
    return logps_R


def sum_by_sequence(logps_R: Tensor, sequence_of_token_R: Tensor, num_sequences: int) -> Tensor:
    """Return the sum of the tokens' log-probabilities of every sequence, shape [S], in the tokens' dtype (fp32+)."""
    sums_S = torch.zeros(num_sequences, dtype=logps_R.dtype, device=logps_R.device)
    return sums_S.index_add(0, sequence_of_token_R, logps_R)
