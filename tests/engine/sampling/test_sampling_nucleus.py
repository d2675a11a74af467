"""The nucleus without a sort of the whole vocabulary: what vLLM keeps with one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wrpo_engine.sampling.nucleus import keep_nucleus


def whole(logits: Tensor, top_p: Tensor) -> Tensor:
    """vLLM's way (`apply_top_k_top_p_pytorch`)."""
    ordered, tokens = logits.sort(dim=-1)
    is_outside = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p.unsqueeze(1)
    is_outside[:, -1] = False
    return logits.scatter(-1, tokens, ordered.masked_fill(is_outside, -torch.inf))


@pytest.mark.parametrize("candidates", [8, 64, 4096])
def test_the_nucleus_is_the_one_of_a_whole_sort(candidates: int) -> None:
    generator = torch.Generator().manual_seed(3)
    # From rows with one likely token to rows of equally likely ones, and top-p from none to all of the probability.
    logits = torch.randn(60, 500, generator=generator) * torch.linspace(8, 0.1, 60).unsqueeze(1)
    top_p = torch.tensor([0.0, 0.3, 0.8, 0.95, 0.999, 1.0]).repeat(10)
    expected = whole(logits, top_p)
    rows: list[int] = []

    def counted(some: Tensor, limits: Tensor) -> Tensor:
        rows.append(len(some))
        return whole(some, limits)

    kept = keep_nucleus(logits.clone(), top_p, counted, candidates=candidates)
    assert torch.equal(kept, expected)
    sizes = (expected[top_p < 1] > -torch.inf).sum(dim=-1)
    assert sum(rows) == (0 if candidates > 500 else int((sizes >= candidates).sum()))
    assert len(sizes.unique()) > 20
