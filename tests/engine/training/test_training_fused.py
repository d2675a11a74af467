"""Generated kernels of norms, feed-forwards and rotary embeddings: the values and gradients of the plain operations."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layout_support import make_causal_lm
from test_training_lean import ARCHITECTURES, assert_close_in_norm, bytes_held, hidden_and_gradients, original_and_lean
from torch import Tensor

from wrpo_engine.training.models import activation_recompute, fused
from wrpo_engine.training.models.fused import Kernel, fused_kernels

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the functions as they are written; return the names of those that were called."""
    called: list[str] = []

    def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
        called.append(function.__name__)
        return function

    monkeypatch.setattr(fused, "_compiled", as_written)
    return called


FUNCTIONS = {
    Kernel.RMS_NORM: {"_norm", "_norm_gradients", "_scaled"},
    Kernel.SWIGLU: {"_gated", "_gated_gradients"},
    Kernel.ROTARY: {"_rotated"},
}
"""Functions that a forward and backward pass calls."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_computes_what_the_original_modules_compute(architecture: str, uncompiled: list[str]) -> None:
    for dtype, tolerance in {torch.float64: 1e-6, torch.bfloat16: 0.05}.items():
        original, ours = original_and_lean(architecture, dtype)
        with fused_kernels(ours, list(Kernel)):
            our_hidden, our_gradients = hidden_and_gradients(ours)
        their_hidden, their_gradients = hidden_and_gradients(original)
        torch.testing.assert_close(our_hidden, their_hidden, rtol=0, atol=1e-9 if dtype is torch.float64 else 0.1)
        assert_close_in_norm(our_gradients, their_gradients, tolerance)
    assert set(uncompiled) == set().union(*FUNCTIONS.values())


@pytest.mark.parametrize("kernel", Kernel)
def test_a_kernel_replaces_its_operation_only_and_only_within_the_context(
    kernel: Kernel, uncompiled: list[str]
) -> None:
    _, model = original_and_lean("llama", torch.float32)
    modeling = sys.modules[type(model.get_decoder().layers[0].self_attn).__module__]
    rotary = vars(modeling)["apply_rotary_pos_emb"]
    with fused_kernels(model, [kernel]):
        hidden_and_gradients(model)
    assert set(uncompiled) == FUNCTIONS[kernel]
    uncompiled.clear()
    hidden_and_gradients(model)
    assert uncompiled == []
    assert vars(modeling)["apply_rotary_pos_emb"] is rotary
    assert not any(activation_recompute.OPERATION in vars(module) for module in model.modules())


@pytest.mark.usefixtures("uncompiled")
def test_frozen_norms_get_no_gradient_and_their_inputs_the_same_one() -> None:
    original, ours = original_and_lean("llama", torch.float64)
    for model in (original, ours):
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 2)
    with fused_kernels(ours, [Kernel.RMS_NORM]):
        _, our_gradients = hidden_and_gradients(ours)
    _, their_gradients = hidden_and_gradients(original)
    assert_close_in_norm(our_gradients, their_gradients, 1e-6)


@pytest.mark.usefixtures("uncompiled")
def test_nothing_more_is_kept_for_the_backward_pass() -> None:
    plain = bytes_held(make_causal_lm(dtype=torch.float32))
    model = make_causal_lm(dtype=torch.float32)
    with fused_kernels(model, [Kernel.RMS_NORM, Kernel.SWIGLU]):
        assert bytes_held(model) == plain


def test_an_architecture_without_kernels_is_refused_by_name() -> None:
    expected = (
        "there are no fused kernels for architecture gpt2; supported: granite, llama, mistral, qwen2, qwen3, smollm3"
    )
    with pytest.raises(ValueError, match=expected), fused_kernels(make_causal_lm("gpt2"), list(Kernel)):
        pass


def compare_compiled(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Compare generated kernels with the plain operations in float64 at head size 128, for two lengths."""
    for tokens in (300, 17):
        generator = torch.Generator().manual_seed(tokens)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)  # noqa: B023

        hidden, weight, gate, up = draw(1, tokens, 512), draw(512), draw(1, tokens, 640), draw(1, tokens, 640)
        q, k, cos, sin = draw(1, 4, tokens, 128), draw(1, 1, tokens, 128), draw(1, tokens, 128), draw(1, tokens, 128)
        cases: list[tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = [
            (
                lambda x, w: fused.FusedRmsNorm.apply(x, w, 1e-5)[0],
                lambda x, w: fused._norm(x, w, 1e-5)[0],
                (hidden, weight),
            ),
            (lambda g, u: fused.FusedGatedProduct.apply(g, u, None), fused._gated, (gate, up)),
            (
                lambda *x: torch.cat(fused.rotary(*x), 1),
                lambda q, k, cos, sin: torch.cat(fused._rotated(q, k, cos, sin, 1), 1),
                (q, k, cos, sin),
            ),
        ]
        for ours, theirs, values in cases:
            own = [value.detach().clone().requires_grad_() for value in values]
            exact = [value.detach().double().requires_grad_() for value in values]
            result, expected = ours(*own), theirs(*exact)
            torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
            upstream = torch.ones_like(expected)
            for our, their in zip(
                torch.autograd.grad(result, own, upstream.to(dtype)),
                torch.autograd.grad(expected, exact, upstream),
                strict=True,
            ):
                bound = tolerance * max(1.0, float(their.abs().max()))
                torch.testing.assert_close(our.double(), their, rtol=tolerance, atol=bound)


@pytest.mark.slow
def test_generated_kernels_on_a_cpu_equal_the_plain_operations() -> None:
    compare_compiled("cpu", torch.float32, 1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"])
def test_generated_kernels_on_a_gpu_equal_the_plain_operations(dtype: torch.dtype, tolerance: float) -> None:
    compare_compiled("cuda", dtype, tolerance)


@pytest.mark.gpu
@needs_cuda
def test_a_model_on_a_gpu_computes_the_same_with_all_kernels() -> None:
    plain = make_causal_lm("llama", dtype=torch.bfloat16).to("cuda")
    activation_recompute.install(plain)
    ours = copy.deepcopy(plain)
    ids = torch.arange(3, 25, device="cuda").view(2, 11)
    results = []
    with fused_kernels(ours, list(Kernel)):
        for model in (plain, ours):
            model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float().square().mean().backward()
            results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_close_in_norm(results[1], results[0], 0.05)
