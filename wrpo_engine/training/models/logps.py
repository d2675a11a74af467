"""Chunked log-probabilities of given tokens, without a [tokens, vocabulary] tensor for a whole batch.

R = tokens with loss of the micro-batch, C = tokens of a chunk, D = hidden size, V = vocabulary. Logits exist for one
chunk at a time. Their softmax is kept for the backward pass for as many chunks as `KEPT_BYTES` allows and recomputed
for the others. So peak memory is bounded, independent of the batch, the length and the number of responses. If the head
is not trained (LoRA), the forward pass computes the gradient of the hidden states and nothing is kept.

The gradient of a token's log-probability with respect to its logits is -(softmax - onehot(target)), called `excess`
below without its sign. With soft targets a distribution over K ids takes the place of the one-hot target: the value is
sum(w * logits) - logsumexp and the gradient -(softmax - w), for weights w with sum 1. Upstream gradients are applied to
[C, D] operands. So only the matrix products and the softmax itself read all of [C, V].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wrpo_engine.training.batch.soft import SoftTargets
from wrpo_engine.training.models.wide_products import add_product, product

LOGITS_PER_CHUNK = {"cpu": 2**20, "cuda": 2**28}
"""Elements of one chunk's logits by type of device; their softmax takes as many again if it is not kept.

A small chunk fits a CPU's caches (4 MiB in fp32). On a GPU every chunk reads the whole head and adds a [V, D] product
to the head's gradient, so many small chunks would be limited by memory bandwidth. 1 GiB in fp32 is 2,048 tokens of a
vocabulary of 131,072.
"""
MIN_CHUNK_TOKENS = 128
"""Minimum for the largest vocabularies; smaller chunks take up to twice as long per token."""
ALIGNMENT = {"cuda": 128}
"""Tokens of which chunks are multiples by type of device, 1 elsewhere: GPU kernels compute tiles of that size.

A GPU reads the whole head for a chunk of one token too.
"""
KEPT_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Maximum bytes of one micro-batch's softmax that are kept for the backward pass, by type of device.

A kept softmax saves a quarter of the head's operations.
"""


@dataclass(frozen=True, slots=True)
class HeadScaling:
    """Scaling of logits after the head in some architectures: softcap * tanh(scale * logits / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of_config(cls, config: Any) -> HeadScaling:
        """Return the scaling of a config: Cohere's logit_scale, Granite's logits_scaling, Gemma-2's soft cap."""
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(scale=scale, softcap=float(softcap) if softcap else None)


@dataclass(frozen=True, slots=True)
class LogitsBudget:
    """The memory limits of [tokens, vocabulary] tensors on a type of device."""

    chunk: int
    """Tokens whose logits exist at a time."""
    kept_bytes: int
    """Bytes of the softmax that is kept for the backward pass."""
    alignment: int = 1
    """Chunks are multiples of this many tokens."""

    @classmethod
    def of(cls, device_type: str, vocabulary: int) -> LogitsBudget:
        """Return the limits of a device type; unknown types have those of the CPU."""
        logits = LOGITS_PER_CHUNK.get(device_type, LOGITS_PER_CHUNK["cpu"])
        kept = KEPT_BYTES.get(device_type, KEPT_BYTES["cpu"])
        alignment = ALIGNMENT.get(device_type, 1)
        smallest = max(MIN_CHUNK_TOKENS, 2 * alignment if alignment > 1 else 1)
        return cls(max(smallest, logits // vocabulary // alignment * alignment), kept, alignment)


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """The split of the tokens into chunks."""

    chunk: int
    """Maximum tokens of a chunk."""
    kept_tokens: int = 0
    """Tokens whose softmax may be kept for the backward pass."""
    alignment: int = 1
    """Chunks are multiples of this many tokens, but for the last one."""

    def num_kept(self, tokens: int) -> int:
        """Return the number of tokens, from the first, whose softmax is kept: all of them, or with an alignment chunks.

        At least an alignment of tokens remains for the other chunks.
        """
        if tokens <= self.kept_tokens or self.alignment == 1:
            return min(tokens, self.kept_tokens)
        kept = self.kept_tokens // self.chunk * self.chunk
        return kept - self.alignment if kept and tokens - kept < self.alignment else kept

    def parts(self, tokens: int, num_kept: int) -> list[tuple[int, int]]:
        """Return the chunks' bounds; no chunk contains both kept and other tokens.

        With an alignment, a last chunk shorter than it takes that many tokens from the chunk before it.
        """
        bounds = [*range(0, num_kept, self.chunk), *range(num_kept, tokens, self.chunk), tokens]
        if len(bounds) > 2 and tokens - bounds[-2] < self.alignment:
            bounds[-2] -= self.alignment
        return list(pairwise(bounds))


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer: weights, and the scaling of its logits."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scaling: HeadScaling = HeadScaling()
    accumulator: torch.dtype = torch.float32
    """Of its results: fp32, or as wide as the hidden states."""

    def buffer(self, tokens: int) -> Tensor:
        """Return uninitialised logits of some tokens."""
        return self.weight_VD.new_empty(tokens, self.weight_VD.shape[0], dtype=self.accumulator)

    def logits(self, hidden_CD: Tensor, out_CV: Tensor) -> Tensor:
        """Write the chunk's logits in the wide dtype, because logsumexp over V in bf16 is wrong in the second digit."""
        product(hidden_CD, self.weight_VD.T, out_CV)
        if self.bias_V is not None:
            out_CV += self.bias_V
        if self.scaling.scale != 1.0:
            out_CV *= self.scaling.scale
        if self.scaling.softcap is not None:
            out_CV.div_(self.scaling.softcap).tanh_().mul_(self.scaling.softcap)
        return out_CV

    def excess(self, logits_CV: Tensor, softmax_CV: Tensor, targets: Targets) -> Tensor:
        """Turn the softmax in place into (softmax - target) * d(logits) / d(head's output) / scale."""
        # In fp32, before any cast: for an almost certain token, this difference is nearly all that remains.
        targets.subtract_from(softmax_CV)
        if self.scaling.softcap is not None:
            softmax_CV *= 1 - (logits_CV / self.scaling.softcap) ** 2
        return softmax_CV


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of C tokens: one id each, or a distribution over K ids each."""

    ids_C: Tensor
    soft: SoftTargets | None = None

    def __getitem__(self, part: slice) -> Targets:
        return Targets(self.ids_C[part], None if self.soft is None else self.soft[part])

    def subtract_from(self, softmax_CV: Tensor) -> None:
        """Subtract the targets' probabilities in place."""
        if self.soft is not None:
            softmax_CV.scatter_add_(-1, self.soft.ids_RK, -self.soft.weights_RK.to(softmax_CV.dtype))
            return
        softmax_CV[torch.arange(len(self.ids_C), device=self.ids_C.device), self.ids_C] -= 1

    def labels(self, logits_CV: Tensor) -> Tensor:
        """Return the logit of every token's id, [C]."""
        return logits_CV.gather(-1, self.ids_C[:, None]).squeeze(-1)

    def expected(self, logits_CV: Tensor) -> Tensor:
        """Return the mean logit under every token's target, [C]."""
        if self.soft is None:
            return self.labels(logits_CV)
        return (logits_CV.gather(-1, self.soft.ids_RK) * self.soft.weights_RK.to(logits_CV.dtype)).sum(-1)

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The target ids, the soft targets' ids and their weights, to save for the backward pass."""
        return self.ids_C, *((None, None) if self.soft is None else (self.soft.ids_RK, self.soft.weights_RK))


def _targets(ids_C: Tensor, soft_ids_CK: Tensor | None, weights_CK: Tensor | None) -> Targets:
    if soft_ids_CK is None or weights_CK is None:
        return Targets(ids_C)
    return Targets(ids_C, SoftTargets(soft_ids_CK, weights_CK))


def _softmax(logits_CV: Tensor, out_CV: Tensor) -> Tensor:
    # One fused kernel, by aten's name: torch.softmax has no `out`.
    torch.ops.aten._softmax.out(logits_CV, -1, False, out=out_CV)  # noqa: SLF001
    return out_CV


class _SelectedLogps(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - signature of torch.autograd.Function
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_R: Tensor,
        soft_ids_RK: Tensor | None,
        weights_RK: Tensor | None,
        scaling: HeadScaling,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        targets = _targets(targets_R, soft_ids_RK, weights_RK)
        head = Head(weight_VD, bias_V, scaling, torch.promote_types(hidden_RD.dtype, torch.float32))
        tokens = len(targets_R)
        logps_R = hidden_RD.new_empty(tokens, dtype=head.accumulator)
        entropies_R = hidden_RD.new_empty(tokens if options.with_entropy else 0, dtype=head.accumulator)
        labels_R = hidden_RD.new_empty(0 if targets.soft is None else tokens, dtype=head.accumulator)
        trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        num_kept = options.plan.num_kept(tokens) if options.wants_gradient and trains_head else 0
        kept: dict[tuple[int, int], Tensor] = {}
        makes_gradient = options.wants_gradient and not trains_head
        derivative_RD = torch.empty_like(hidden_RD) if makes_gradient else None
        logits_buffer_CV, spare_CV = head.buffer(min(options.plan.chunk, tokens)), None

        for start, stop in options.plan.parts(tokens, num_kept):
            part = slice(start, stop)
            logits_CV = head.logits(hidden_RD[part], logits_buffer_CV[: stop - start])
            if stop <= num_kept:
                softmax_CV = kept[start, stop] = head.buffer(stop - start)
            else:
                spare_CV = head.buffer(min(options.plan.chunk, tokens)) if spare_CV is None else spare_CV
                softmax_CV = spare_CV[: stop - start]
            _softmax(logits_CV, softmax_CV)
            # logsumexp, from the largest element: its probability is at least 1/V, so that the logarithm is exact.
            normalizers_C = logits_CV.amax(-1) - softmax_CV.amax(-1).log()
            logps_R[part] = targets[part].expected(logits_CV) - normalizers_C
            if targets.soft is not None:
                labels_R[part] = targets[part].labels(logits_CV) - normalizers_C
            if options.with_entropy:
                entropies_R[part] = normalizers_C - torch.linalg.vecdot(softmax_CV, logits_CV)
            if stop <= num_kept or derivative_RD is not None:
                head.excess(logits_CV, softmax_CV, targets[part])
            if derivative_RD is not None:
                derivative_RD[part] = (softmax_CV.to(weight_VD.dtype) @ weight_VD) * -scaling.scale

        if derivative_RD is not None:
            ctx.save_for_backward(derivative_RD)
        else:
            ctx.save_for_backward(hidden_RD, weight_VD, bias_V, *targets.tensors)
        # Not among the saved tensors, which exist until the backward pass ends: each chunk is released after its use.
        ctx.kept = kept
        ctx.makes_gradient, ctx.scaling, ctx.options, ctx.num_kept = makes_gradient, scaling, options, num_kept
        ctx.mark_non_differentiable(entropies_R, labels_R)
        return logps_R, entropies_R, labels_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_R: Tensor, *_no_gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.makes_gradient:
            (derivative_RD,) = ctx.saved_tensors
            return (grad_R[:, None] * derivative_RD).to(derivative_RD.dtype), *(None,) * 7
        hidden_RD, weight_VD, bias_V, *saved = ctx.saved_tensors
        targets = _targets(*saved)
        options: _Options = ctx.options
        head = Head(weight_VD, bias_V, ctx.scaling, grad_R.dtype)
        low = weight_VD.dtype
        tokens = len(targets.ids_C)
        grad_hidden_RD = torch.empty_like(hidden_RD)
        # The head's gradient sums over all tokens of the batch: fp32, cast once at the end.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=grad_R.dtype) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=grad_R.dtype) if bias_V is not None else None
        scaled_R = grad_R * -head.scaling.scale
        scaled_RD = hidden_RD * scaled_R[:, None].to(low)
        logits_buffer_CV = softmax_buffer_CV = None

        for start, stop in options.plan.parts(tokens, ctx.num_kept):
            part = slice(start, stop)
            excess_CV = ctx.kept.pop((start, stop), None)
            if excess_CV is None:
                if logits_buffer_CV is None or softmax_buffer_CV is None:
                    logits_buffer_CV, softmax_buffer_CV = (
                        head.buffer(min(options.plan.chunk, tokens)) for _ in range(2)
                    )
                logits_CV = head.logits(hidden_RD[part], logits_buffer_CV[: stop - start])
                softmax_CV = _softmax(logits_CV, softmax_buffer_CV[: stop - start])
                excess_CV = head.excess(logits_CV, softmax_CV, targets[part])
            low_CV = excess_CV.to(low)
            grad_hidden_RD[part] = (low_CV @ weight_VD) * scaled_R[part, None]
            if grad_weight_VD is not None:
                add_product(grad_weight_VD, low_CV.T, scaled_RD[part])
            if grad_bias_V is not None:
                grad_bias_V += excess_CV.T @ scaled_R[part]
        return (
            grad_hidden_RD,
            None if grad_weight_VD is None else grad_weight_VD.to(low),
            None if bias_V is None or grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            *(None,) * 5,
        )


@dataclass(frozen=True, slots=True)
class _Options:
    """The split of the tokens into chunks, and the requested results."""

    plan: ChunkPlan
    wants_gradient: bool
    with_entropy: bool


class TokenLogps(NamedTuple):
    """Values of R tokens in nats."""

    logps_R: Tensor
    """Log-probability of every token, with a graph."""
    entropies_R: Tensor
    """Entropy of every token's distribution, detached; [0] unless it was asked for."""
    labels_R: Tensor
    """With soft targets, the log-probability of the token itself, detached; otherwise [0]."""


def token_logps(
    hidden_RD: Tensor,
    head: Head,
    targets: Targets,
    *,
    budget: LogitsBudget | None = None,
    with_entropy: bool = False,
) -> TokenLogps:
    """Return log softmax(hidden @ weight^T)[target], and what was asked for in addition, in fp32 or wider.

    With soft targets, the log-probability of a token is its mean under them. The default budget is that of the head's
    device. Raise ValueError for shapes that do not match.
    """
    targets_R, soft = targets.ids_C, targets.soft
    if soft is not None and (len(soft.ids_RK) != len(targets_R) or soft.ids_RK.shape != soft.weights_RK.shape):
        raise ValueError(
            f"need soft targets [R, K] of {len(targets_R)} tokens; got ids {tuple(soft.ids_RK.shape)}, "
            f"weights {tuple(soft.weights_RK.shape)}"
        )
    if hidden_RD.ndim != 2 or targets_R.shape != hidden_RD.shape[:1]:
        raise ValueError(f"need hidden [R, D] and targets [R]; got {tuple(hidden_RD.shape)}, {tuple(targets_R.shape)}")
    vocabulary = head.weight_VD.shape[0]
    bytes_per_token = vocabulary * torch.promote_types(hidden_RD.dtype, torch.float32).itemsize
    limits = budget or LogitsBudget.of(head.weight_VD.device.type, vocabulary)
    options = _Options(
        plan=ChunkPlan(limits.chunk, limits.kept_bytes // bytes_per_token, limits.alignment),
        wants_gradient=torch.is_grad_enabled(),
        with_entropy=with_entropy,
    )
    apply: Any = _SelectedLogps.apply
    return TokenLogps(*apply(hidden_RD, head.weight_VD, head.bias_V, *targets.tensors, head.scaling, options))


class TopLogps(NamedTuple):
    """The likeliest tokens for R positions, in nats."""

    ids_RK: Tensor
    """The K likeliest ids of every position, likeliest first; of equals in any order."""
    logps_RK: Tensor
    """Their log-probabilities."""
    labels_R: Tensor
    """Log-probability of every position's own token."""


@torch.no_grad()
def top_logps(hidden_RD: Tensor, head: Head, targets_R: Tensor, top_k: int, *, chunk: int | None = None) -> TopLogps:
    """Return the `top_k` likeliest tokens of every position in fp32 or wider; logits exist for one chunk at a time."""
    head = replace(head, accumulator=torch.promote_types(hidden_RD.dtype, torch.float32))
    tokens = len(targets_R)
    size = chunk or LogitsBudget.of(head.weight_VD.device.type, head.weight_VD.shape[0]).chunk
    found = TopLogps(
        targets_R.new_empty(tokens, top_k),
        hidden_RD.new_empty(tokens, top_k, dtype=head.accumulator),
        hidden_RD.new_empty(tokens, dtype=head.accumulator),
    )
    buffer_CV = head.buffer(min(size, tokens))
    for start, stop in ChunkPlan(size).parts(tokens, 0):
        part = slice(start, stop)
        logits_CV = head.logits(hidden_RD[part], buffer_CV[: stop - start])
        normalizers_C = torch.logsumexp(logits_CV, dim=-1)
        values_CK, found.ids_RK[part] = torch.topk(logits_CV, top_k, dim=-1)
        found.logps_RK[part] = values_CK - normalizers_C[:, None]
        found.labels_R[part] = logits_CV.gather(-1, targets_R[part, None]).squeeze(-1) - normalizers_C
    return found


def sum_by_sequence(logps_R: Tensor, sequence_of_token_R: Tensor, num_sequences: int) -> Tensor:
    """Return the sum of the tokens' log-probabilities of every sequence, [S], in the tokens' dtype (fp32 or wider)."""
    sums_S = torch.zeros(num_sequences, dtype=logps_R.dtype, device=logps_R.device)
    return sums_S.index_add(0, sequence_of_token_R, logps_R)
