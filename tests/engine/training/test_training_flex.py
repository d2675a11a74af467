"""The GPU's attention without a GPU: the code of `attention_flex` without the generated kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layout_support import logps_and_gradients, make_causal_lm
from test_training_layout import dense_mask, plan_of, random_heads
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module

from wrpo_engine.training.batch.layout import AttentionPlan, Layout
from wrpo_engine.training.models import attention, attention_flex
from wrpo_engine.training.models.attention_flex import family_attention_flex, sees
from wrpo_engine.training.models.attention_segments import ScoreRule, attend_by_segment

pytestmark = pytest.mark.slow
BLOCK = 128
SHORT = [(5, [3, 4]), (1, [2]), (4, [])]
LONG = [(150, [30, 1, 70]), (7, [3]), (200, []), (120, [9, 131])]
"""721 tokens: five whole blocks and a part of one; families begin and end within blocks."""


@pytest.fixture
def make_compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`make_compiled(backend="eager")`: compile as the engine does, with another generator of code."""
    as_the_engine_does, compile_with_inductor = attention_flex._compiled.__wrapped__, torch.compile
    monkeypatch.setattr(attention_flex._Failure, "is_known", False)

    def make(**changes: Any) -> None:
        torch.compiler.reset()
        monkeypatch.setattr(
            torch, "compile", lambda function, **options: compile_with_inductor(function, **options | changes)
        )
        functions = as_the_engine_does()
        monkeypatch.setattr(attention_flex, "_compiled", lambda: functions)

    return make


@pytest.fixture
def flex(make_compiled: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they are traced: exact, in float64, and with gradients, which FlexAttention refuses on a CPU."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_heads: None)
    make_compiled(backend="eager")


CASES: dict[str, tuple[list[tuple[int, list[int]]], int, float | None, int | None]] = {
    "one block": (SHORT, 1, None, None),
    "several blocks and a part of one": (LONG, 1, None, None),
    "grouped heads": (LONG, 3, None, None),
    "a window": (LONG, 1, None, 64),
    "soft-capped scores": (LONG, 1, 2.0, None),
    "all of it": (LONG, 2, 0.7, 100),
}
"""Families, query heads for each key-value head, soft cap, window."""


@pytest.mark.parametrize(("lengths", "groups", "softcap", "window"), CASES.values(), ids=CASES.keys())
@pytest.mark.usefixtures("flex")
def test_outputs_and_gradients_are_those_of_attention_by_segment(
    lengths: list[tuple[int, list[int]]], groups: int, softcap: float | None, window: int | None
) -> None:
    plan = plan_of(lengths)
    heads = random_heads(plan, 2, groups)
    ours = family_attention_flex(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3, softcap, window))
    assert not attention_flex._Failure.is_known
    theirs = attend_by_segment(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3, softcap, window))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    upstream = torch.randn(theirs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for our, their in zip(
        torch.autograd.grad(ours, heads, upstream), torch.autograd.grad(theirs, heads, upstream), strict=True
    ):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-11)


def in_blocks(mask: Tensor) -> Tensor:
    """Return [blocks, blocks, BLOCK * BLOCK]; positions after the last token attend to nothing."""
    blocks = -(-len(mask) // BLOCK)
    padded = torch.zeros(blocks * BLOCK, blocks * BLOCK, dtype=torch.bool)
    padded[: len(mask), : len(mask)] = mask
    return padded.view(blocks, BLOCK, blocks, BLOCK).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.usefixtures("flex")
def test_the_block_mask_skips_exactly_the_fully_masked_blocks(window: int | None) -> None:
    plan = plan_of(LONG)
    tokens = len(plan.positions_T)
    _, make_mask = attention_flex._compiled()
    mask = make_mask(sees(plan, window), None, None, tokens, tokens, device=torch.device("cpu"))
    expected = in_blocks(dense_mask(plan, window)).any(-1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), expected)
    assert 0 < int(expected.sum()) < expected.numel() / 2


MODELS = ("llama", "gemma2 with soft-capped scores and windows", "mistral with a sliding window")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.usefixtures("flex")
def test_a_model_computes_the_same_with_it(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected_logps, expected = logps_and_gradients(make_causal_lm(architecture), Layout.SHARED_PREFIX)
    scales = []

    def on_a_gpu(_module: Any, *heads: Tensor, plan: AttentionPlan, scaling: float, **settings: Any) -> Any:
        window = settings.get("sliding_window")
        scales.append((scaling, settings.get("softcap"), window))
        return family_attention_flex(
            heads[0], heads[1], heads[2], ScoreRule(plan, scaling, settings.get("softcap"), window)
        ), None

    monkeypatch.setattr(attention, "family_attention", on_a_gpu)
    our_logps, ours = logps_and_gradients(make_causal_lm(architecture), Layout.SHARED_PREFIX)
    assert len(scales) == 2
    assert not attention_flex._Failure.is_known
    torch.testing.assert_close(our_logps, expected_logps, rtol=0, atol=1e-5)
    for name, their in expected.items():
        torch.testing.assert_close(ours[name], their, rtol=0, atol=2e-5 * max(float(their.abs().max()), 1e-3))


@pytest.mark.usefixtures("flex")
def test_lengths_recompile_nothing_and_a_run_of_all_kinds_needs_eight_variants(
    make_compiled: Callable[..., None],
) -> None:
    graphs: list[Any] = []
    make_compiled(backend=lambda graph, _inputs: graphs.append(graph) or graph)
    for lengths in (SHORT, [(100, [28])], LONG, [(300, [40, 7])], [(128, [128])], [(600, [56] * 9)]):
        plan = plan_of(lengths)
        for window in (None, 64):
            for has_gradient in (False, True):
                heads = [head.detach().requires_grad_(has_gradient) for head in random_heads(plan, 2, 2)]
                with torch.set_grad_enabled(has_gradient):
                    family_attention_flex(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3, 20.0, window))
    attends = [graph for graph in graphs if "flex_attention" in graph.code]
    assert len(attends) <= 8
    assert not attention_flex._Failure.is_known


@pytest.mark.usefixtures("flex")
def test_a_variant_too_many_is_computed_by_segment_and_never_uncompiled(
    make_compiled: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    make_compiled(backend="eager", recompile_limit=1)
    plan = plan_of(SHORT)
    heads = random_heads(plan, 2, 2)
    with caplog.at_level(logging.WARNING, "wrpo_engine"):
        for softcap in (None, 2.0, None):
            ours = family_attention_flex(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3, softcap, None))
            torch.testing.assert_close(
                ours,
                attend_by_segment(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3, softcap, None)),
                rtol=0,
                atol=1e-12,
            )
    assert caplog.text.count("segments are computed one by one") == 1


def test_generated_kernels_read_the_block_mask_and_what_the_mask_captures(make_compiled: Callable[..., None]) -> None:
    """Of the CPU's generator, which has no backward pass. A window or soft cap that is a number breaks it."""
    make_compiled()
    for lengths in (LONG, [(300, [40, 7]), (20, [30])]):
        plan = plan_of(lengths)
        heads = [torch.randn(1, heads, len(plan.positions_T), 64) for heads in (4, 2, 2)]
        for softcap, window in ((None, None), (2.0, None), (None, 64)):
            with torch.no_grad():
                ours = family_attention_flex(heads[0], heads[1], heads[2], ScoreRule(plan, 0.125, softcap, window))
            assert not attention_flex._Failure.is_known
            theirs = attend_by_segment(heads[0], heads[1], heads[2], ScoreRule(plan, 0.125, softcap, window))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
