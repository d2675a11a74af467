"""Chunked log-probabilities against full logits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from support.head_logps import head_logps
from torch import Tensor

from wrpo_engine.training.models import wide_products
from wrpo_engine.training.models.logps import (
    ChunkPlan,
    HeadScaling,
    LogitsBudget,
    sum_by_sequence,
)

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
    ours = head_logps(hidden, weight, targets, bias=bias, scaling=scaling, chunk=chunk, kept_bytes=kept_bytes).logps_R
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
    ours = head_logps(hidden, frozen, targets, bias=frozen_bias, scaling=scaling, chunk=5).logps_R
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
        logps, entropies, _ = head_logps(
            hidden, weight, targets, bias=bias, scaling=scaling, chunk=5, with_entropy=True
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
    assert head_logps(hidden, weight, torch.tensor([1])).logps_R.tolist() == [-500.0]
    assert head_logps(hidden, weight, torch.tensor([0])).logps_R.tolist() == [0.0]


def test_bfloat16_gradients_of_all_but_certain_tokens_keep_their_size() -> None:
    """The rest 1 - p is below the resolution of bf16 at the embedding from which it is subtracted."""
    hidden = torch.tensor([[8.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0, 0.5], [-0.5, 0.25]], dtype=torch.bfloat16, requires_grad=True)
    for kept_bytes in (0, 10**6):
        head_logps(hidden, weight, torch.tensor([0]), kept_bytes=kept_bytes).logps_R.backward()
        exact = torch.tensor([[8.0, 1.0]], dtype=torch.float64, requires_grad=True)
        _full(exact, weight.double(), torch.zeros(2), torch.tensor([0]), HeadScaling()).backward()
        assert hidden.grad is not None
        assert exact.grad is not None
        torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=0.05, atol=0)
        hidden.grad = None


def test_bfloat16_weights_give_fp32_log_probs_within_bfloat16s_precision() -> None:
    hidden, weight, bias, targets, _ = _inputs(torch.bfloat16)
    ours = head_logps(hidden, weight, targets, bias=bias, chunk=5).logps_R
    exact = _full(hidden.double(), weight.double(), bias.double(), targets, HeadScaling())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=2**-7, atol=0.05)


def test_a_second_backward_pass_recomputes_what_the_first_has_released() -> None:
    hidden, weight, bias, targets, upstream = _inputs()
    ours = head_logps(hidden, weight, targets, bias=bias, chunk=5).logps_R
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
        head_logps(hidden, weight, targets, bias=bias, chunk=1, kept_bytes=0).logps_R.backward(upstream)
    assert largest == VOCABULARY * HIDDEN
    assert largest < TOKENS * VOCABULARY


def test_the_chunk_shrinks_as_the_vocabulary_grows_but_stays_large_enough_for_fast_products() -> None:
    chunks = [LogitsBudget.of("cpu", vocabulary).chunk for vocabulary in (1024, 4096, 131072)]
    assert chunks == [1024, 256, 128]


BUDGETS = {
    "a CPU's chunk of a large vocabulary is small": ("cpu", 128_256, LogitsBudget(128, 2**28)),
    "a GPU reads its head once for 2,048 of the same tokens": ("cuda", 128_256, LogitsBudget(2048, 2**31, 128)),
    "a GPU's chunk of a small vocabulary is large": ("cuda", 32_768, LogitsBudget(8192, 2**31, 128)),
    "a GPU's chunk has room for two tiles": ("cuda", 2**21, LogitsBudget(256, 2**31, 128)),
    "another device has the limits of a CPU": ("mps", 32_768, LogitsBudget(128, 2**28)),
}


@pytest.mark.parametrize(("device", "vocabulary", "expected"), BUDGETS.values(), ids=BUDGETS.keys())
def test_the_logits_budget_depends_on_device_and_vocabulary(
    device: str, vocabulary: int, expected: LogitsBudget
) -> None:
    assert LogitsBudget.of(device, vocabulary) == expected


ALIGNED = ChunkPlan(2048, kept_tokens=4185, alignment=128)
"""A GPU's plan for a vocabulary of 128,256."""


@pytest.mark.parametrize(
    ("tokens", "kept", "sizes"),
    [
        (4000, 4000, [2048, 1952]),
        (4186, 3968, [2048, 1920, 218]),
        (6145, 4096, [2048, 2048, 1920, 129]),
        (2049, 2049, [1920, 129]),
        (1, 1, [1]),
        (0, 0, []),
    ],
)
def test_a_gpus_chunks_are_whole_tiles(tokens: int, kept: int, sizes: list[int]) -> None:
    assert ALIGNED.num_kept(tokens) == kept
    assert [stop - start for start, stop in ALIGNED.parts(tokens, kept)] == sizes


def test_no_chunk_of_a_gpu_has_less_than_a_tile_unless_there_are_no_more_tokens() -> None:
    counts = (*range(1, 700), 2047, 2048, 2049, 4095, 4097, 4223, 4225, 9001)
    for vocabulary, kept, tokens in product((32_000, 128_256, 2**21), (0, 1, 300, 4185, 10**6), counts):
        budget = LogitsBudget.of("cuda", vocabulary)
        plan = ChunkPlan(budget.chunk, kept, budget.alignment)
        for num_kept in (0, plan.num_kept(tokens)):
            parts = plan.parts(tokens, num_kept)
            case = (vocabulary, kept, tokens, num_kept, parts)
            assert [part for _, part in parts[:-1]] == [part for part, _ in parts[1:]], case
            assert (parts[0][0], parts[-1][1]) == (0, tokens), case
            sizes = [stop - start for start, stop in parts]
            assert all(size % 128 == 0 for size in sizes[:-1]), case
            assert min(sizes) >= min(tokens, 128), case
            assert max(sizes) <= budget.chunk, case
            assert num_kept <= kept, case
            assert num_kept in {0, *(stop for _, stop in parts)}, case


@pytest.fixture
def accumulating_kernels() -> Iterator[list[str]]:
    """The CPU gets CUDA's products of bf16 with fp32 results; the list names every call."""
    calls: list[str] = []
    library = torch.library.Library("aten", "IMPL")

    def multiply(left: Tensor, right: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
        calls.append("mm")
        return torch.mm(left.to(dtype), right.to(dtype), out=out)

    def add(total: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype, *, out: Tensor, **_factors: Any) -> Tensor:
        calls.append("addmm")
        assert total.data_ptr() == out.data_ptr()
        return out.add_(torch.mm(left.to(dtype), right.to(dtype)))

    wide_products.keeps_accumulators.cache_clear()
    library.impl("mm.dtype_out", multiply, "CPU")
    library.impl("addmm.dtype_out", add, "CPU")
    yield calls
    library._destroy()
    wide_products.keeps_accumulators.cache_clear()


def test_logits_of_bfloat16_are_not_rounded_where_the_device_returns_its_accumulators(
    accumulating_kernels: list[str],
) -> None:
    hidden, weight, bias, targets, upstream = _inputs(torch.bfloat16)
    ours = head_logps(hidden, weight, targets, chunk=10, kept_bytes=0).logps_R
    exact = _full(hidden.double(), weight.double(), torch.zeros_like(bias.double()), targets, HeadScaling())
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)
    our_gradients = torch.autograd.grad(ours, (hidden, weight), upstream.float())
    their_gradients = torch.autograd.grad(exact, (hidden, weight), upstream)
    for our, their in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(our, their, rtol=2**-6, atol=2**-6)
    # One trial, four chunks forward, four recomputed, four added to the head's gradient.
    assert sorted(accumulating_kernels) == ["addmm"] * 5 + ["mm"] * 9


def test_a_device_without_such_kernels_rounds_as_before() -> None:
    wide_products.keeps_accumulators.cache_clear()
    assert not wide_products.keeps_accumulators(torch.device("cpu"), torch.bfloat16, torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_returns_the_accumulators_of_its_products() -> None:
    left, right = (torch.randn(256, 256, device="cuda").to(torch.bfloat16) for _ in range(2))
    exact = left.double() @ right.double()
    assert wide_products.keeps_accumulators(left.device, torch.bfloat16, torch.float32)
    made = wide_products.product(left, right, torch.empty(256, 256, device="cuda"))
    torch.testing.assert_close(made.double(), exact, rtol=1e-5, atol=1e-4)
    total = wide_products.add_product(torch.ones(256, 256, device="cuda"), left, right)
    torch.testing.assert_close(total.double(), exact + 1, rtol=1e-5, atol=1e-4)


def test_sums_are_per_sequence_and_empty_ones_are_zero() -> None:
    sums = sum_by_sequence(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 4)
    assert sums.tolist() == [3.0, 0.0, 4.0, 0.0]


def test_mismatched_shapes_are_refused() -> None:
    hidden, weight, _, targets, _ = _inputs()
    with pytest.raises(ValueError, match=r"need hidden \[R, D\] and targets \[R\]"):
        head_logps(hidden, weight, targets[:-1])


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
