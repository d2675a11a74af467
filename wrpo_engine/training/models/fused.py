"""Generated kernels for the element-wise operations of a decoder layer: RMSNorm, SwiGLU and rotary embeddings.

PyTorch runs each of them as several kernels, and every kernel reads and writes all activations. `torch.compile` makes
one kernel of each. The functions replace the operations of `activation_recompute`, so a layer keeps no more for its
backward pass than without them. They are off by default: `make bench-gpu` measures whether they are faster.

T = tokens, D = hidden size, F = width of the feed-forward, E = head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from wrpo_engine.training.models.activation_recompute import LEAN_ARCHITECTURES, OPERATION

RECOMPILE_LIMIT = 16
"""Maximum compiled variants of one function; the number of tokens is dynamic, so few are needed."""


class Kernel(StrEnum):
    """An operation that has a generated kernel."""

    RMS_NORM = "rms-norm"
    SWIGLU = "swiglu"
    ROTARY = "rotary"


@contextmanager
def fused_kernels(causal_lm: Any, kernels: Collection[Kernel]) -> Iterator[None]:
    """Compute the operations of a model that `activation_recompute.install` has changed with generated kernels.

    `Kernel.ROTARY` applies to all models of the same architecture in this process while the context is active. Raise
    ValueError for an architecture that `activation_recompute` does not support.
    """
    model_type = causal_lm.config.model_type
    if model_type not in LEAN_ARCHITECTURES:
        supported = ", ".join(sorted(LEAN_ARCHITECTURES))
        raise ValueError(f"there are no fused kernels for architecture {model_type}; supported: {supported}")
    decoder = causal_lm.get_decoder()
    norms = [module for module in decoder.modules() if type(module).__name__.endswith("RMSNorm")]
    with ExitStack() as stack:
        if Kernel.RMS_NORM in kernels:
            for norm in norms:
                stack.enter_context(_attribute(norm, OPERATION, FusedRmsNorm))
        if Kernel.SWIGLU in kernels:
            for layer in decoder.layers:
                stack.enter_context(_attribute(layer.mlp, OPERATION, FusedGatedProduct))
        if Kernel.ROTARY in kernels:
            modeling = sys.modules[type(decoder.layers[0].self_attn).__module__]
            stack.enter_context(_attribute(modeling, "apply_rotary_pos_emb", rotary))
        yield


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    previous = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if previous is None:
            delattr(owner, name)
        else:
            setattr(owner, name, previous)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compile_: Any = torch.compile  # its annotations lack recompile_limit
    compiled: Callable[..., Any] = compile_(function, dynamic=True, fullgraph=True, recompile_limit=RECOMPILE_LIMIT)
    return compiled


class FusedRmsNorm(torch.autograd.Function):
    """weight * x / rms(x), normalised in fp32; the operation of `activation_recompute` in two kernels."""

    @staticmethod
    @override
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        result, scale = _compiled(_norm)(hidden, weight, epsilon)
        ctx.save_for_backward(hidden, weight, scale)
        ctx.mark_non_differentiable(scale)
        return result, scale

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, grad: Tensor, _grad_scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, scale = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return _compiled(_norm_input_gradient)(grad, hidden, weight, scale), None, None
        grad_hidden, grad_weight = _compiled(_norm_gradients)(grad, hidden, weight, scale)
        return grad_hidden, grad_weight, None

    @staticmethod
    def recipe(hidden: Tensor, scale: Tensor, weight: Tensor) -> Callable[[], Tensor]:
        """Return the function that computes the result again for the backward pass of its readers."""
        return partial(_compiled(_scaled), hidden, scale, weight)


class FusedGatedProduct(torch.autograd.Function):
    """silu(gate) * up in one kernel, and both gradients in another."""

    @staticmethod
    @override
    def forward(ctx: Any, gate: Tensor, up: Tensor, _activation: Any) -> Tensor:
        ctx.save_for_backward(gate, up)
        result: Tensor = _compiled(_gated)(gate, up)
        return result

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_gate, grad_up = _compiled(_gated_gradients)(grad, *ctx.saved_tensors)
        return grad_gate, grad_up, None

    @staticmethod
    def recipe(gate: Tensor, up: Tensor, _activation: Any) -> Callable[[], Tensor]:
        """Return the function that computes the product again for the backward pass of its reader."""
        return partial(_compiled(_gated), gate, up)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Return queries and keys [1, heads, T, E] rotated by their positions, as `apply_rotary_pos_emb` does."""
    rotated: tuple[Tensor, Tensor] = _compiled(_rotated)(q, k, cos, sin, unsqueeze_dim)
    return rotated


# The functions to compile. Values are rounded where the plain operations round them in memory that others read.


def _scaled(hidden: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return weight * (hidden.to(torch.float32) * scale).to(hidden.dtype)


def _norm(hidden: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(hidden.to(torch.float32).pow(2).mean(-1, keepdim=True) + epsilon)
    return _scaled(hidden, scale, weight), scale


def _norm_input_gradient(grad: Tensor, hidden: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    accumulator = torch.promote_types(grad.dtype, torch.float32)
    normalized = (hidden.to(torch.float32) * scale).to(accumulator)
    upstream = grad.to(accumulator) * weight.to(accumulator)
    along = (upstream * normalized).mean(-1, keepdim=True)
    return ((upstream - normalized * along) * scale).to(hidden.dtype)


def _norm_gradients(grad: Tensor, hidden: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    accumulator = torch.promote_types(grad.dtype, torch.float32)
    normalized = (hidden.to(torch.float32) * scale).to(accumulator)
    grad_weight = (grad.to(accumulator) * normalized).flatten(0, -2).sum(0).to(weight.dtype)
    return _norm_input_gradient(grad, hidden, weight, scale), grad_weight


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up


def _gated_gradients(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(gate.dtype, torch.float32)
    gate_wide, grad_wide = gate.to(wide), grad.to(wide)
    sigmoid = torch.sigmoid(gate_wide)
    slope = sigmoid * (1 + gate_wide * (1 - sigmoid))
    return (grad_wide * up.to(wide) * slope).to(gate.dtype), (grad_wide * gate_wide * sigmoid).to(up.dtype)


def _half_rotated(value: Tensor) -> Tensor:
    first, second = value.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return q * cos + _half_rotated(q) * sin, k * cos + _half_rotated(k) * sin
