"""The fast attention gives the hidden states of Transformers' own, for every form of DeBERTa's positions."""

from __future__ import annotations

from typing import Any

import pytest
from pairrm_models import make_config, make_oracle

FORMS: dict[str, dict[str, Any]] = {
    "published": {},
    "own position keys": {"share_att_key": False},
    "content to position alone": {"pos_att_type": "c2p"},
    "position to content alone": {"pos_att_type": "p2c"},
    "no position terms": {"pos_att_type": []},
    "no buckets": {"position_buckets": -1, "max_relative_positions": 12},
    "other norms of positions": {"norm_rel_ebd": "none"},
    "absolute positions as well": {"position_biased_input": True},
    "no relative positions": {"relative_attention": False, "pos_att_type": []},
}


@pytest.mark.parametrize("form", FORMS)
def test_hidden_states_are_those_of_transformers(form: str) -> None:
    import torch

    from wrpo_engine.selecting.pairrm_attention import use_fast_attention

    config = make_config(heads=2, **FORMS[form])
    encoder, _, _ = make_oracle(config)
    # Short rows take products for each distance, long ones those for each bucket.
    lengths = [(1,), (2, 1), (9, 4, 9), (17, 17), (70, 33)]
    batches = []
    for row_lengths in lengths:
        width = max(row_lengths)
        mask = torch.tensor([[1] * length + [0] * (width - length) for length in row_lengths])
        ids = torch.randint(4, 250, mask.shape, generator=torch.Generator().manual_seed(width)) * mask
        batches.append((ids, mask))

    def states() -> list[Any]:
        with torch.inference_mode():
            found = [encoder(input_ids=ids, attention_mask=mask).last_hidden_state for ids, mask in batches]
        return [state[mask.bool()] for state, (_, mask) in zip(found, batches, strict=True)]

    expected = states()
    use_fast_attention(encoder)
    for found, wanted in zip(states(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
