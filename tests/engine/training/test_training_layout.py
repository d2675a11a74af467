"""Layouts compute the same numbers: packed, padded and shared-prefix against separate sequences."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_support import (
    ARCHITECTURES,
    ROWS,
    UPSTREAM,
    logps_and_gradients,
    logps_of_separate_sequences,
    make_causal_lm,
)
from torch import Tensor

from wrpo_engine.errors import ConfigError
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import VERIFIED_ARCHITECTURES, AttentionPlan, Family, Layout, choose_layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.models import attention_flex
from wrpo_engine.training.models.attention import family_attention
from wrpo_engine.training.models.attention_cpu import family_attention_cpu
from wrpo_engine.training.models.attention_flex import sees
from wrpo_engine.training.models.attention_segments import ScoreRule, attend_by_segment
from wrpo_engine.training.models.model import LogpModel

TOLERANCE = 2e-5
"""Some architectures normalise in fp32 regardless of the model's dtype, which limits the exactness even in float64."""


def gradients_of(causal_lm: Any) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in causal_lm.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Compare each parameter's gradient relatively to its largest element."""
    assert ours.keys() == theirs.keys()
    for name, their in theirs.items():
        scale = float(their.abs().max())
        torch.testing.assert_close(ours[name], their, rtol=0, atol=tolerance * max(scale, 1e-3), msg=lambda m: m + name)  # noqa: B023


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layout_equals_separate_sequences_in_values_and_gradients(architecture: str) -> None:
    dtype = torch.float32 if architecture == "mixtral" else torch.float64  # Its grouped products have no float64.
    tolerance = 2e-4 if architecture == "mixtral" else TOLERANCE
    causal_lm = make_causal_lm(architecture, dtype=dtype)
    expected_logps = logps_of_separate_sequences(causal_lm, ROWS, UPSTREAM)
    expected = {name: gradient.clone() for name, gradient in gradients_of(causal_lm).items()}
    lengths = collate(ROWS).lengths_S
    for layout in (Layout.PADDED, Layout.PACKED, Layout.SHARED_PREFIX):
        our_logps, gradients = logps_and_gradients(causal_lm, layout)
        torch.testing.assert_close(our_logps / lengths, expected_logps / lengths, rtol=0, atol=1e-5)
        assert_same_gradients(gradients, expected, tolerance)


def test_every_verified_architecture_is_verified_here() -> None:
    assert {architecture.split(maxsplit=1)[0] for architecture in ARCHITECTURES} == VERIFIED_ARCHITECTURES


def test_the_prompt_is_computed_once_and_the_last_tokens_not_at_all() -> None:
    row = TokenRow("a", (3, 4, 5), ((6, 7, 2), (8, 2), (2,)))
    batch = collate([row, row], Layout.SHARED_PREFIX)
    assert batch.input_ids_LT.tolist() == [[3, 4, 5, 6, 7, 8, 3, 4, 5, 6, 7, 8]]
    assert batch.plan is not None
    assert batch.plan.positions_T.tolist() == [0, 1, 2, 3, 4, 3] * 2
    assert batch.plan.families == (Family((0, 3), ((3, 5), (5, 6))), Family((6, 9), ((9, 11), (11, 12))))
    assert batch.positions_R.tolist() == [2, 3, 4, 2, 5, 2, 8, 9, 10, 8, 11, 8]
    assert batch.targets_R.tolist() == [6, 7, 2, 8, 2, 2] * 2
    assert batch.sequence_of_token_R.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 4, 5]
    assert batch.lengths_S.tolist() == [3, 2, 1] * 2


@pytest.mark.parametrize("layout", Layout)
def test_sft_on_all_tokens_gives_the_prompt_loss_but_for_its_first_token(layout: Layout) -> None:
    rows = [TokenRow("a", (3, 4, 5), ((6, 7, 2),), prompt_has_loss=True), TokenRow("b", (9,), ((2,),), True)]
    batch = collate(rows, layout)
    assert batch.targets_R.tolist() == [4, 5, 6, 7, 2, 2]
    assert batch.lengths_S.tolist() == [5, 1] == [row.num_loss_tokens for row in rows]
    causal_lm = make_causal_lm()
    logits = causal_lm(torch.tensor([[3, 4, 5, 6, 7, 2]])).logits[0, :-1]
    expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor([4, 5, 6, 7, 2])[:, None]).sum()
    torch.testing.assert_close(LogpModel(causal_lm, layout)(batch=batch)[0], expected, rtol=0, atol=1e-5)


def test_several_responses_cannot_share_a_prompt_that_carries_loss() -> None:
    with pytest.raises(ValueError, match=r"row a: prompt_has_loss needs exactly one response; got 2"):
        TokenRow("a", (3,), ((2,), (2,)), prompt_has_loss=True)


def test_empty_prompts_and_responses_are_refused_by_name() -> None:
    rows = [TokenRow("a", (), ((2,),)), TokenRow("b", (1,), ((2,),)), TokenRow("c", (1,), ((),))]
    with pytest.raises(ValueError, match=r"these do not: \['a', 'c'\]"):
        collate(rows)


@pytest.mark.parametrize("layout", Layout)
def test_gradient_checkpointing_changes_no_bit(layout: Layout) -> None:
    plain, checkpointed = make_causal_lm(), make_causal_lm()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    (our_logps, ours), (their_logps, theirs) = (
        logps_and_gradients(causal_lm, layout) for causal_lm in (checkpointed, plain)
    )
    assert torch.equal(our_logps, their_logps)
    assert all(torch.equal(ours[name], their) for name, their in theirs.items())


@pytest.mark.parametrize("layout", Layout)
def test_accumulated_rows_give_the_gradient_of_one_batch(layout: Layout) -> None:
    causal_lm = make_causal_lm()
    logps_together, together = logps_and_gradients(causal_lm, layout)
    together = copy.deepcopy(together)
    causal_lm.zero_grad(set_to_none=True)
    model = LogpModel(causal_lm, layout)
    for index, row in enumerate(ROWS):
        logps = model(batch=collate([row], layout))
        torch.testing.assert_close(logps.detach(), logps_together[3 * index : 3 * index + 3], rtol=0, atol=1e-5)
        (logps * UPSTREAM[3 * index : 3 * index + 3]).sum().backward()
    assert_same_gradients(gradients_of(causal_lm), together)


@pytest.mark.parametrize("layout", Layout)
def test_bfloat16_stays_within_its_precision_of_fp32(layout: Layout) -> None:
    """Eight bits of mantissa over two layers: 0.05 a token, and gradients within a tenth in norm."""
    exact_logps, exact = logps_and_gradients(make_causal_lm(dtype=torch.float32), layout)
    our_logps, ours = logps_and_gradients(make_causal_lm(dtype=torch.float32).to(torch.bfloat16), layout)
    lengths = collate(ROWS).lengths_S
    assert our_logps.dtype == torch.float32
    torch.testing.assert_close(our_logps / lengths, exact_logps / lengths, rtol=0, atol=0.05)
    error = sum(float((ours[name].float() - their).square().sum()) for name, their in exact.items())
    norm = sum(float(their.square().sum()) for their in exact.values())
    assert error / norm < 0.1**2


def test_a_lora_model_is_found_through_its_wrappers() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    wrapped = get_peft_model(make_causal_lm(dtype=torch.float32), config, autocast_adapter_dtype=False)
    results = {layout: logps_and_gradients(wrapped, layout) for layout in (Layout.PADDED, Layout.SHARED_PREFIX)}
    our_logps, ours = results[Layout.SHARED_PREFIX]
    their_logps, theirs = results[Layout.PADDED]
    assert ours.keys()
    assert all("lora_" in name for name in ours)
    torch.testing.assert_close(our_logps, their_logps, rtol=1e-5, atol=1e-4)
    assert_same_gradients(ours, theirs, 1e-4)


# The attention by itself.


def dense_mask(plan: AttentionPlan, window: int | None = None) -> Tensor:
    """Return who sees whom, [T, T], written down pair by pair."""
    tokens = len(plan.positions_T)
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for family in plan.families:
        for start, stop in (family.prefix, *family.branches):
            for query in range(start, stop):
                for key in (*range(*family.prefix), *range(start, stop)):
                    far = window is not None and plan.positions_T[query] - plan.positions_T[key] >= window
                    mask[query, key] = key <= query and not far
    return mask


families_of_lengths = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), max_size=4)), min_size=1, max_size=3
)


def plan_of(lengths: list[tuple[int, list[int]]]) -> AttentionPlan:
    families: list[Any] = []
    positions: list[int] = []
    place = 0
    for prefix, branches in lengths:
        first = (place, place + prefix)
        positions += range(prefix)
        place += prefix
        spans = []
        for branch in branches:
            spans.append((place, place + branch))
            positions += range(prefix, prefix + branch)
            place += branch
        families.append(Family(first, tuple(spans)))
    return AttentionPlan(tuple(families), torch.tensor(positions))


def random_heads(plan: AttentionPlan, shared: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = len(plan.positions_T)
    shapes = [(1, shared * groups, tokens, 8), (1, shared, tokens, 8), (1, shared, tokens, 8)]
    query, key, value = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def dense_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ keys.mT * scale).masked_fill(~mask, float("-inf"))
    return (torch.softmax(scores, -1) @ values).transpose(1, 2)


@settings(deadline=None, max_examples=40)
@given(lengths=families_of_lengths, shared=st.integers(1, 2), groups=st.integers(1, 3))
def test_merged_flash_attention_is_exact_for_any_families(
    lengths: list[tuple[int, list[int]]], shared: int, groups: int
) -> None:
    plan = plan_of(lengths)
    heads = random_heads(plan, shared, groups)
    ours = family_attention_cpu(*heads, plan.families, 0.3)
    theirs = dense_attention(*heads, dense_mask(plan), 0.3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    upstream = torch.randn(theirs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for our, their in zip(
        torch.autograd.grad(ours, heads, upstream), torch.autograd.grad(theirs, heads, upstream), strict=True
    ):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=20)
@given(lengths=families_of_lengths, window=st.none() | st.integers(1, 12))
def test_attention_by_segment_is_exact_for_any_families_and_window(
    lengths: list[tuple[int, list[int]]], window: int | None
) -> None:
    plan = plan_of(lengths)
    heads = random_heads(plan, 2, 2)
    ours = attend_by_segment(heads[0], heads[1], heads[2], ScoreRule(plan, 0.3, None, window))
    torch.testing.assert_close(ours, dense_attention(*heads, dense_mask(plan, window), 0.3), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(lengths=families_of_lengths, window=st.none() | st.integers(1, 12))
def test_the_gpus_mask_lets_tokens_attend_to_exactly_their_families(
    lengths: list[tuple[int, list[int]]], window: int | None
) -> None:
    plan = plan_of(lengths)
    places = torch.arange(len(plan.positions_T))
    zero = torch.tensor(0)
    seen = sees(plan, window)(zero, zero, places[:, None], places[None, :])
    assert torch.equal(seen, dense_mask(plan, window))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_attention_on_a_gpu_equals_attention_by_segment() -> None:
    plan = plan_of([(200, [90, 1, 140]), (1, [3]), (70, [])]).to(torch.device("cuda"))
    heads = tuple(
        torch.randn(1, heads, 505, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (8, 2, 2)
    )
    module = torch.nn.Module()
    for softcap, window in ((None, None), (20.0, None), (None, 64), (20.0, 64)):
        ours, _ = family_attention(
            module, heads[0], heads[1], heads[2], None, plan=plan, scaling=0.125, softcap=softcap, sliding_window=window
        )
        exact = [tensor.detach().float().requires_grad_() for tensor in heads]
        theirs = attend_by_segment(exact[0], exact[1], exact[2], ScoreRule(plan, 0.125, softcap, window))
        torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=2e-2)
        upstream = torch.randn_like(theirs)
        for our, their in zip(
            torch.autograd.grad(ours, heads, upstream.to(ours.dtype)),
            torch.autograd.grad(theirs, exact, upstream),
            strict=True,
        ):
            torch.testing.assert_close(our.float(), their, rtol=5e-2, atol=5e-2 * float(their.abs().max()))
    assert not attention_flex._Failure.is_known, "segments were compared with segments"


def test_attention_that_the_plan_cannot_express_is_refused() -> None:
    plan = plan_of([(3, [2])])
    heads = random_heads(plan, 1, 1)
    with pytest.raises(ValueError, match="attention sinks or biases"):
        family_attention(torch.nn.Module(), *heads, None, plan=plan, s_aux=torch.zeros(1))
    with pytest.raises(ValueError, match=r"dropout 0\.1"):
        family_attention(torch.nn.Module(), *heads, None, plan=plan, dropout=0.1)


# Which layout runs.


def test_auto_shares_the_prefix_where_that_is_verified_and_pads_elsewhere_saying_why() -> None:
    assert choose_layout("auto", SimpleNamespace(model_type="llama")).layout is Layout.SHARED_PREFIX
    other = choose_layout("auto", SimpleNamespace(model_type="bloom"))
    assert other.layout is Layout.PADDED
    assert other.reason == ("architecture bloom is not among those verified for sequences that share a row of tokens")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_configured_layout_runs(layout: Any) -> None:
    assert choose_layout(layout, SimpleNamespace(model_type="llama")).layout == layout


@pytest.mark.parametrize("layout", ["shared-prefix", "packed"])
def test_a_layout_that_an_architecture_does_not_support_is_a_config_error(layout: Any) -> None:
    with pytest.raises(ConfigError, match=r"training\.layout") as raised:
        choose_layout(layout, SimpleNamespace(model_type="bloom"))
    assert "architecture bloom is not among those verified" in str(raised.value)
    assert "set it to padded" in str(raised.value.hint)


def test_a_batch_of_another_layout_is_refused() -> None:
    model = LogpModel(make_causal_lm(), Layout.SHARED_PREFIX)
    with pytest.raises(ValueError, match="a model of layout shared-prefix got a batch of another layout"):
        model(batch=collate(ROWS))
