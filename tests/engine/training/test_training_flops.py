"""The operation counts against PyTorch's own counter and against masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.flops import ModelCost, causal_pairs, needed_training_step, shared_prefix_pairs
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.models.model import LogpModel

SMALL = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",
}


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize("tied", [True, False])
def test_forward_and_backward_are_what_pytorch_counts(tied: bool) -> None:
    model = tiny_llama(tie_word_embeddings=tied, head_dim=24)
    cost = ModelCost.of(model)
    ids = torch.arange(2 * 40).view(2, 40)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids, use_cache=False).logits
    # Eager attention computes what the mask hides, too: all pairs.
    assert counter.get_total_flops() == pytest.approx(
        cost.forward(tokens=80, pairs=2 * 40**2, head_tokens=80), rel=5e-3
    )
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    expected = 2 * cost.forward(tokens=80, pairs=2 * 40**2, head_tokens=80)
    assert counter.get_total_flops() == pytest.approx(expected, rel=5e-3)


def test_experts_count_by_their_active_share() -> None:
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    cost = ModelCost.of(MixtralForCausalLM(config))
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
    active_experts = 2 * 3 * 16 * 32
    assert cost.body_weights == attention + active_experts
    assert cost.head_weights == 64 * 16


@given(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_pairs_are_the_ones_of_the_mask(prompt: int, responses: list[int]) -> None:
    owner = torch.tensor([-1] * prompt + [index for index, length in enumerate(responses) for _ in range(length)])
    causal = torch.ones(len(owner), len(owner)).tril().bool()
    mask = causal & ((owner[:, None] == owner[None, :]) | (owner[None, :] == -1))
    assert shared_prefix_pairs(prompt, responses) == int(mask.sum())
    assert causal_pairs(prompt) == int(causal[:prompt, :prompt].sum())
    assert shared_prefix_pairs(prompt, responses[:1]) == causal_pairs(prompt + responses[0])


def test_a_training_step_needs_each_prompt_once_and_the_head_on_tokens_with_loss_only() -> None:
    cost = ModelCost(body_weights=10, head_weights=100, attention_width=1)
    rows = [TokenRow("a", (1, 2), ((3,), (4, 5))), TokenRow("b", (1,), ((2, 3),))]
    first = 2 * 10 * (2 + 1) + 4 * (3 + (2 + 1)) + 2 * 100 * 3
    second = 2 * 10 * (1 + 1) + 4 * (1 + 2) + 2 * 100 * 2
    assert needed_training_step(cost, rows) == 3 * (first + second)
    assert needed_training_step(cost, rows, passes=2) == 2 * (first + second)


def test_a_prompt_with_loss_needs_the_head_too() -> None:
    cost = ModelCost(body_weights=10, head_weights=100, attention_width=1)
    plain, full = (TokenRow("a", (1, 2, 3), ((4, 5),), prompt_has_loss=loss) for loss in (False, True))
    difference = needed_training_step(cost, [full]) - needed_training_step(cost, [plain])
    assert difference == 3 * 2 * 100 * 2


def test_the_shared_prefix_layout_does_what_is_needed_and_no_more() -> None:
    row = TokenRow("a", tuple(range(3, 60)), (tuple(range(3, 33)), tuple(range(40, 51)), tuple(range(5, 26))))
    causal_lm = LlamaForCausalLM(LlamaConfig(**SMALL))
    cost = ModelCost.of(causal_lm)
    model = LogpModel(causal_lm, Layout.SHARED_PREFIX)
    with FlopCounterMode(display=False) as counter:
        model(collate([row], Layout.SHARED_PREFIX)).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = counted[torch.ops.aten.mm] + counted.get(torch.ops.aten.addmm, 0)
    # The gradient of the head's weight is added up in place, which the counter does not see.
    products += 2 * cost.head_weights * sum(len(response) for response in row.responses)
    without_attention = ModelCost(cost.body_weights, cost.head_weights, attention_width=0)
    assert products == pytest.approx(needed_training_step(without_attention, [row]), rel=5e-3)
