"""Chunked log-probabilities against full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wrpo_engine.training.models.logps import HeadScaling, LogitsBudget, selected_logps, sum_by_sequence, token_logps

TOKENS, HIDDEN, VOCABULARY = 37, 8, 53

SCALINGS = {
    "plain": HeadScaling(),
    "scaled logits": HeadScaling(scale=0.25),
    "soft-capped logits": HeadScaling(softcap=3.0),
    "both": HeadScaling(scale=1.5, softcap=2.0),
}


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(VOCABULARY, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    upstream = torch.randn(TOKENS, dtype=torch.float64, generator=generator)
    return hidden, weight, bias, targets, upstream


def _full(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, scaling: HeadScaling) -> Tensor:
    logits = (hidden @ weight.T + bias) * scaling.scale
    if scaling.softcap is not None:
        logits = scaling.softcap * torch.tanh(logits / scaling.softcap)
    return torch.log_softmax(logits, dim=-1).gather(-1, targets[:, None]).squeeze(-1)


KEPT = {"nothing kept": 0, "half of it kept": 17 * 53 * 8, "everything kept": 10**9}


@pytest.mark.parametrize("chunk", [1, 5, 37, 1000])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
@pytest.mark.parametrize("kept_bytes", KEPT.values(), ids=KEPT.keys())
def test_chunks_give_the_values_and_gradients_of_full_logits(chunk: int, scaling: HeadScaling, kept_bytes: int) -> None:
    hidden, weight, bias, targets, upstream = _inputs()
    ours = selected_logps(hidden, weight, targets, bias_V=bias, scaling=scaling, chunk=chunk, kept_bytes=kept_bytes)
    theirs = _full(hidden, weight, bias, targets, scaling)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    our_gradients = torch.autograd.grad(ours, (hidden, weight, bias), upstream)
    their_gradients = torch.autograd.grad(theirs, (hidden, weight, bias), upstream)
    for our, their in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-11)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
def test_a_head_that_is_not_trained_gives_the_same_gradient_to_hidden_states(scaling: HeadScaling) -> None:
    hidden, weight, bias, targets, upstream = _inputs()
    frozen, frozen_bias = weight.detach(), bias.detach()
    ours = selected_logps(hidden, frozen, targets, bias_V=frozen_bias, scaling=scaling, chunk=5)
    theirs = _full(hidden, frozen, frozen_bias, targets, scaling)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    (our,) = torch.autograd.grad(ours, hidden, upstream)
    (their,) = torch.autograd.grad(theirs, hidden, upstream)
    torch.testing.assert_close(our, their, rtol=0, atol=1e-11)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
@pytest.mark.parametrize("has_gradient", [True, False])
def test_entropies_are_those_of_full_logits_and_carry_no_gradient(scaling: HeadScaling, has_gradient: bool) -> None:
    hidden, weight, bias, targets, _ = _inputs()
    with torch.set_grad_enabled(has_gradient):
        logps, entropies = token_logps(
            hidden, weight, targets, bias_V=bias, scaling=scaling, chunk=5, with_entropy=True
        )
    logits = (hidden @ weight.T + bias) * scaling.scale
    if scaling.softcap is not None:
        logits = scaling.softcap * torch.tanh(logits / scaling.softcap)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropies, expected, rtol=0, atol=1e-12)
    assert (logps.requires_grad, entropies.requires_grad) == (has_gradient, False)


def test_log_probs_of_tokens_that_fp32_gives_no_probability_are_exact() -> None:
    """The softmax of the second token underflows; its logarithm is known all the same."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[200.0], [-300.0]])
    assert selected_logps(hidden, weight, torch.tensor([1])).tolist() == [-500.0]
    assert selected_logps(hidden, weight, torch.tensor([0])).tolist() == [0.0]


def test_bfloat16_gradients_of_all_but_certain_tokens_keep_their_size() -> None:
    """The rest 1 - p is below the resolution of bf16 at the embedding from which it is subtracted."""
    hidden = torch.tensor([[8.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0, 0.5], [-0.5, 0.25]], dtype=torch.bfloat16, requires_grad=True)
    for kept_bytes in (0, 10**6):
        selected_logps(hidden, weight, torch.tensor([0]), kept_bytes=kept_bytes).backward()
        exact = torch.tensor([[8.0, 1.0]], dtype=torch.float64, requires_grad=True)
        _full(exact, weight.double(), torch.zeros(2), torch.tensor([0]), HeadScaling()).backward()
        assert hidden.grad is not None
        assert exact.grad is not None
        torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=0.05, atol=0)
        hidden.grad = None


def test_bfloat16_weights_give_fp32_log_probs_within_bfloat16s_precision() -> None:
    hidden, weight, bias, targets, _ = _inputs(torch.bfloat16)
    ours = selected_logps(hidden, weight, targets, bias_V=bias, chunk=5)
    exact = _full(hidden.double(), weight.double(), bias.double(), targets, HeadScaling())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=2**-7, atol=0.05)


def test_a_second_backward_pass_recomputes_what_the_first_has_released() -> None:
    hidden, weight, bias, targets, upstream = _inputs()
    ours = selected_logps(hidden, weight, targets, bias_V=bias, chunk=5)
    first = torch.autograd.grad(ours, (hidden, weight, bias), upstream, retain_graph=True)
    second = torch.autograd.grad(ours, (hidden, weight, bias), upstream)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_no_tensor_of_tokens_times_vocabulary_is_made() -> None:
    """Peak logits are chunk x vocabulary: with one token a chunk, nothing larger than the head itself appears."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return result

    hidden, weight, bias, targets, upstream = _inputs()
    with Watch():
        selected_logps(hidden, weight, targets, bias_V=bias, chunk=1, kept_bytes=0).backward(upstream)
    assert largest == VOCABULARY * HIDDEN
    assert largest < TOKENS * VOCABULARY


def test_the_chunk_shrinks_as_the_vocabulary_grows_but_stays_large_enough_for_fast_products() -> None:
    chunks = [LogitsBudget.of("cpu", vocabulary).chunk for vocabulary in (1024, 4096, 131072)]
    assert chunks == [1024, 256, 128]


BUDGETS = {
    "a CPU's chunk of a large vocabulary is small": ("cpu", 128_256, LogitsBudget(128, 2**28)),
    "a GPU reads its head once for 2,092 of the same tokens": ("cuda", 128_256, LogitsBudget(2092, 2**31)),
    "a GPU's chunk of a small vocabulary is large": ("cuda", 32_768, LogitsBudget(8192, 2**31)),
    "another device has the limits of a CPU": ("mps", 32_768, LogitsBudget(128, 2**28)),
}


@pytest.mark.parametrize(("device", "vocabulary", "expected"), BUDGETS.values(), ids=BUDGETS.keys())
def test_the_logits_budget_depends_on_device_and_vocabulary(
    device: str, vocabulary: int, expected: LogitsBudget
) -> None:
    assert LogitsBudget.of(device, vocabulary) == expected


def test_sums_are_per_sequence_and_empty_ones_are_zero() -> None:
    sums = sum_by_sequence(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 4)
    assert sums.tolist() == [3.0, 0.0, 4.0, 0.0]


def test_mismatched_shapes_are_refused() -> None:
    hidden, weight, _, targets, _ = _inputs()
    with pytest.raises(ValueError, match=r"need hidden \[R, D\] and targets \[R\]"):
        selected_logps(hidden, weight, targets[:-1])


CONFIGS = {
    "gemma-2": ({"final_logit_softcapping": 30.0}, HeadScaling(softcap=30.0)),
    "cohere": ({"logit_scale": 0.0625}, HeadScaling(scale=0.0625)),
    "granite": ({"logits_scaling": 8.0}, HeadScaling(scale=0.125)),
    "llama": ({}, HeadScaling()),
}


@pytest.mark.parametrize(("attributes", "expected"), CONFIGS.values(), ids=CONFIGS.keys())
def test_what_architectures_do_after_the_head_is_read_from_their_config(
    attributes: dict[str, float], expected: HeadScaling
) -> None:
    from types import SimpleNamespace

    assert HeadScaling.of_config(SimpleNamespace(**attributes)) == expected
