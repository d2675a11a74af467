"""What a decoder layer keeps for its backward pass: the inputs of cheap operations, their results made anew.

Transformers' RMSNorm and gated feed-forward keep, for each token, the norm's input, its normalised form and its result,
the gate, its activation, the other half and their product. All follow by a few element-wise operations from the norm's
input and the two halves, which here are all that is kept: about half of what a layer holds, for the same bits forward.

A norm's result is an input of linear layers, which save it for their weights' gradient. They are called as ever (so
that ZeRO-3 gathers their weights and LoRA wraps them), with a hook that saves how to make the tensor in its place.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAN_ARCHITECTURES = frozenset({"granite", "llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""Values of `model_type` whose layers are norm, attention, norm, feed-forward in Llama's form: weight * normalised in
the input's dtype, down(silu(gate) * up). Each is tested against its own modules."""

_BLOCKS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Norm of a layer -> the linear layers that read its result."""
_LATEST = "_wrpo_latest"
OPERATION = "_wrpo_operation"
"""Attribute of a norm or feed-forward: the autograd function that computes it in place of the one here (`fused`)."""


def install(causal_lm: Any) -> str:
    """Let the model's layers keep less where that is known to be right; return what they do, for the log."""
    model_type = getattr(causal_lm.config, "model_type", type(causal_lm).__name__)
    if model_type not in LEAN_ARCHITECTURES:
        return f"as Transformers has it (architecture {model_type} is not among those known)"
    decoder = causal_lm.get_decoder()
    if any("forward" in module.__dict__ and not _is_ours(module) for module in decoder.modules()):
        return "as Transformers has it (something else has replaced a module's forward method)"
    if any(not _is_silu(layer.mlp.act_fn) for layer in decoder.layers):
        return "as Transformers has it (the feed-forward's activation is not SiLU)"
    for module in decoder.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _replace(module, _norm)
    for layer in decoder.layers:
        _replace(layer.mlp, _gated)
    if causal_lm.is_gradient_checkpointing:
        # A hook within a checkpointed layer would keep what the checkpoint drops.
        return "each layer's input (gradient checkpointing)"
    _connect(decoder)
    return "inputs of norms and activations, their results made anew"


def _connect(decoder: Any) -> None:
    """Give the norms, the feed-forwards and the readers of their results one place for the latest result."""
    latest = _Latest()
    for layer in decoder.layers:
        setattr(layer.mlp, _LATEST, latest)
        for norm, readers in _BLOCKS.items():
            setattr(layer.get_submodule(norm), _LATEST, latest)
            for reader in readers:
                _replace(layer.get_submodule(reader), _reader)
                setattr(layer.get_submodule(reader), _LATEST, latest)


def _is_silu(module: nn.Module) -> bool:
    return isinstance(module, nn.SiLU) or type(module).__name__ == "SiLUActivation"


def _is_ours(module: nn.Module) -> bool:
    return getattr(module.forward, "__func__", None) in {_norm, _gated, _reader}


def _replace(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    module.forward = types.MethodType(forward, module)


def _steps_aside() -> bool:
    """Without a gradient nothing is kept; a compiler decides by itself what to make anew."""
    return torch.compiler.is_compiling() or not torch.is_grad_enabled()


# What takes the place of the modules' forward methods. The class's own method is called by its name, not captured, so
# that copies of a model stay independent.


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    if _steps_aside():
        original: Tensor = type(self).forward(self, hidden_states)
        return original
    operation: Any = getattr(self, OPERATION, _RmsNorm)
    result, scale = operation.apply(hidden_states, self.weight, self.variance_epsilon)
    latest = getattr(self, _LATEST, None)
    if latest is not None:
        # The weight by value: ZeRO-3 may have put the parameter away when a reader's gradient is computed.
        latest.remember(result, operation.recipe(hidden_states.detach(), scale, self.weight.detach().clone()))
    return result  # type: ignore[no-any-return]


def _reader(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    forward = type(self).forward
    make = None if _steps_aside() else getattr(self, _LATEST).how_to_make(x)
    if make is None:
        plain: Tensor = forward(self, x, *args, **kwargs)
        return plain
    with _made_anew(x, make, self):
        result: Tensor = forward(self, x, *args, **kwargs)
    return result


def _gated(self: Any, x: Tensor) -> Tensor:
    if _steps_aside():
        original: Tensor = type(self).forward(self, x)
        return original
    gate, up = self.gate_proj(x), self.up_proj(x)
    activation = _Activation()
    operation: Any = getattr(self, OPERATION, _GatedProduct)
    product = operation.apply(gate, up, activation)
    latest = getattr(self, _LATEST, None)
    if latest is None:
        plain: Tensor = self.down_proj(product)
        return plain
    latest.forget()
    with _made_anew(product, operation.recipe(gate.detach(), up.detach(), activation), self.down_proj):
        result: Tensor = self.down_proj(product)
    return result


# How to make what was not kept.


@dataclass(frozen=True, slots=True)
class _Normalized:
    """A norm's result."""

    hidden: Tensor
    scale: Tensor
    weight: Tensor

    def __call__(self) -> Tensor:
        return self.weight * _normalize(self.hidden, self.scale).to(self.hidden.dtype)


@dataclass(slots=True)
class _Activation:
    """silu(gate), from where the product was made anew to where its own gradient follows."""

    value: Tensor | None = None

    def take(self, gate: Tensor) -> Tensor:
        value, self.value = self.value, None
        return nn.functional.silu(gate) if value is None else value


@dataclass(frozen=True, slots=True)
class _Gated:
    """silu(gate) * up."""

    gate: Tensor
    up: Tensor
    activation: _Activation

    def __call__(self) -> Tensor:
        self.activation.value = nn.functional.silu(self.gate)
        return self.activation.value * self.up


@dataclass(slots=True)
class _Latest:
    """The result of the norm that ran last. It is held, so that no other tensor can lie where it lies."""

    result: Tensor | None = None
    make: Callable[[], Tensor] | None = None

    def remember(self, result: Tensor, make: Callable[[], Tensor]) -> None:
        self.result, self.make = result.detach(), make

    def forget(self) -> None:
        self.result = self.make = None

    def how_to_make(self, tensor: Tensor) -> Callable[[], Tensor] | None:
        return self.make if self.result is not None and _place(tensor) == _place(self.result) else None


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass(frozen=True, slots=True)
class _View:
    """A saved tensor by what it is a view of: something to be made, or a parameter, which ZeRO-3 moves."""

    source: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, saved: Tensor, source: Callable[[], Tensor]) -> _View:
        return cls(source, saved.size(), saved.stride(), int(saved.storage_offset()))

    def __call__(self) -> Tensor:
        return self.source().as_strided(self.size, self.stride, self.offset)


def _made_anew(tensor: Tensor, make: Callable[[], Tensor], reader: nn.Module) -> Any:
    """Save, instead of what lies where `tensor` lies, how to make it."""
    # The hooks live as long as what they saved: they must not hold the tensor.
    place = _place(tensor)

    def pack(saved: Tensor) -> Tensor | _View:
        here = _place(saved)
        if not here:
            return saved  # Empty, as is a parameter that ZeRO-3 has put away.
        if here == place:
            return _View.of(saved, make)
        for parameter in reader.parameters():
            if here == _place(parameter):
                return _View.of(saved, _DataOf(parameter))
        return saved

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


@dataclass(frozen=True, slots=True)
class _DataOf:
    """A parameter as it lies when it is needed: a hook gets a copy that would hold what ZeRO-3 wants to free."""

    parameter: nn.Parameter

    def __call__(self) -> Tensor:
        return self.parameter.detach()


def _unpack(saved: Tensor | _View) -> Tensor:
    return saved if isinstance(saved, Tensor) else saved()


# The operations themselves.


def _normalize(hidden: Tensor, scale: Tensor) -> Tensor:
    return hidden.to(torch.float32) * scale


class _RmsNorm(torch.autograd.Function):
    """weight * x / rms(x), normalised in fp32 as Transformers does, whatever the model's dtype."""

    recipe = _Normalized

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        variance = hidden.to(torch.float32).pow(2).mean(-1, keepdim=True)
        scale = torch.rsqrt(variance + epsilon)
        ctx.save_for_backward(hidden, weight, scale)
        ctx.mark_non_differentiable(scale)
        return weight * _normalize(hidden, scale).to(hidden.dtype), scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _grad_scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, scale = ctx.saved_tensors
        accumulator = torch.promote_types(grad.dtype, torch.float32)
        size = hidden.shape[-1]
        upstream, normalized = grad.to(accumulator), _normalize(hidden, scale).to(accumulator)
        weight_wide = weight.to(accumulator)
        share = upstream * normalized
        grad_weight = share.sum(tuple(range(share.ndim - 1))).to(weight.dtype) if ctx.needs_input_grad[1] else None
        # d(x / rms(x)) = scale * (dx - normalised * mean(normalised * dx)).
        along = (share @ weight_wide).div_(size).unsqueeze_(-1)
        grad_hidden = torch.mul(upstream, weight_wide, out=share).sub_(normalized.mul_(along)).mul_(scale)
        return grad_hidden.to(hidden.dtype), grad_weight, None


class _GatedProduct(torch.autograd.Function):
    """silu(gate) * up."""

    recipe = _Gated

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: _Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        grad_up = ctx.activation.take(gate).mul_(grad)
        grad_gate = grad * up
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate, grad_up, None
