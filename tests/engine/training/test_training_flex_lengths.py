"""FlexAttention over micro-batches of many lengths: few compilations, never eager, equal to segments."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from wrpo_engine.training.batch.layout import AttentionPlan, Family
from wrpo_engine.training.models import attention_flex, attention_segments
from wrpo_engine.training.models.attention_flex import family_attention_flex
from wrpo_engine.training.models.attention_segments import ScoreRule, attend_by_segment

LENGTHS = (300, 17, 1, 127, 128, 129, 505, 64, 2, 1000, 257)
"""One block of 128 and more, whole ones and not."""


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(attention_flex._Failure, "is_known", False)
    compiled = attention_flex._compiled
    compiled.cache_clear()
    torch.compiler.reset()
    yield
    compiled.cache_clear()


def plan_of(tokens: int, device: torch.device) -> AttentionPlan:
    """One family: a prompt and two responses."""
    bounds = [0, (tokens + 1) // 2, (3 * tokens + 3) // 4, tokens]
    branches = tuple((start, stop) for start, stop in pairwise(bounds[1:]) if start < stop)
    prompt = bounds[1]
    positions = chain(range(prompt), *(range(prompt, prompt + stop - start) for start, stop in branches))
    return AttentionPlan((Family((0, prompt), branches),), torch.tensor(list(positions))).to(device)


def heads_of(tokens: int, size: int, **options: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    made = [torch.randn(1, heads, tokens, size, generator=generator) for heads in (4, 2, 2)]
    return [tensor.to(**options) for tensor in made]


def refuse_uncompiled(*_arguments: Any) -> Tensor:
    raise AssertionError("attention by segment took over")


def test_past_the_limit_of_compilations_segments_take_over_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The exception's type is not one of Dynamo's own."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def fail(*_arguments: Any, **_options: Any) -> Tensor:
        raise FailOnRecompileLimitHit("Hard failure due to fullgraph=True")

    monkeypatch.setattr(attention_flex, "_compiled", lambda: (fail, lambda *_arguments, **_options: None))
    plan, heads = plan_of(17, torch.device("cpu")), heads_of(17, 8)
    with caplog.at_level(logging.WARNING, "wrpo_engine"):
        ours = [family_attention_flex(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3)) for _ in range(2)]
    assert all(torch.equal(our, attend_by_segment(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3))) for our in ours)
    assert caplog.messages == [
        "FlexAttention cannot be compiled; segments are computed one by one: Hard failure due to fullgraph=True"
    ]


@pytest.mark.slow
def test_without_a_gradient_lengths_share_their_compilations_on_a_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_flex, "RECOMPILE_LIMIT", 3)
    monkeypatch.setattr(attention_segments, "attend_by_segment", refuse_uncompiled)
    with torch.no_grad():
        for tokens in LENGTHS:
            plan, heads = plan_of(tokens, torch.device("cpu")), heads_of(tokens, 32)
            ours = family_attention_flex(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3))
            torch.testing.assert_close(
                ours, attend_by_segment(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3)), rtol=0, atol=1e-5
            )


KERNELS = {
    "bf16": (torch.bfloat16, 64, 2e-2),
    "fp32": (torch.float32, 64, 1e-2),
    "head size 256": (torch.bfloat16, 256, 2e-2),
}
"""fp32 products may run in TF32."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("has_gradient", [True, False], ids=["with gradient", "no grad"])
@pytest.mark.parametrize(("dtype", "size", "tolerance"), KERNELS.values(), ids=KERNELS.keys())
def test_on_a_gpu_every_length_equals_attention_by_segment(
    dtype: torch.dtype, size: int, tolerance: float, has_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_segments, "attend_by_segment", refuse_uncompiled)
    for tokens in LENGTHS:
        plan = plan_of(tokens, torch.device("cuda"))
        heads = [tensor.requires_grad_(has_gradient) for tensor in heads_of(tokens, size, device="cuda", dtype=dtype)]
        exact = [tensor.detach().double().requires_grad_() for tensor in heads]
        ours = family_attention_flex(heads[0], heads[1], heads[2], ScoreRule(plan, size**-0.5))
        theirs = attend_by_segment(exact[0], exact[1], exact[2], ScoreRule(plan, size**-0.5))
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
        if not has_gradient:
            continue
        upstream = torch.randn_like(theirs)
        our_gradients = torch.autograd.grad(ours, heads, upstream.to(dtype))
        for our, their in zip(our_gradients, torch.autograd.grad(theirs, exact, upstream), strict=True):
            bound = 3 * tolerance * max(1.0, float(their.abs().max()))
            torch.testing.assert_close(our.double(), their, rtol=3 * tolerance, atol=bound)
