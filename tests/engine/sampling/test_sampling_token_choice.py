"""Penalties and limits of the choice of a token, against transformers' own processors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.contract.sampling import TokenChoiceFields
from wrpo_engine.sampling.rows import Row
from wrpo_engine.sampling.sampler import SampleRequest, SamplerSettings
from wrpo_engine.sampling.token_choice import limited, penalised

VOCABULARY = 40


def row(prompt: list[int], tokens: list[int]) -> Row:
    request = SampleRequest(key="x", prompt_token_ids=prompt, num_samples=1, seed=1)
    return Row(request, 0, 8, np.random.default_rng(0), tokens=tokens)


IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)
LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=VOCABULARY, max_size=VOCABULARY)


@given(IDS, IDS, LOGITS, st.floats(0.25, 4))
def test_the_repetition_penalty_is_that_of_transformers(
    prompt: list[int], tokens: list[int], logits: list[float], penalty: float
) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = torch.tensor([logits])
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[*prompt, *tokens]]), scores.clone())
    before = scores.clone()
    torch.testing.assert_close(
        penalised(scores, [row(prompt, tokens)], TokenChoiceFields(repetition_penalty=penalty)), wanted
    )
    assert torch.equal(scores, before)


@given(IDS, IDS, LOGITS, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_count_the_response_alone(
    prompt: list[int], tokens: list[int], logits: list[float], presence: float, frequency: float
) -> None:
    found = penalised(
        torch.tensor([logits, logits]),
        [row(prompt, tokens), row(tokens, [])],
        TokenChoiceFields(presence_penalty=presence, frequency_penalty=frequency),
    )
    counts = Counter(tokens)
    wanted = [
        value - (presence + frequency * counts[token] if token in counts else 0.0) for token, value in enumerate(logits)
    ]
    torch.testing.assert_close(found[0], torch.tensor(wanted))
    assert found[1].tolist() == torch.tensor(logits).tolist()


@given(LOGITS, st.integers(1, VOCABULARY + 3), st.floats(0, 1))
def test_the_limits_are_those_of_transformers(logits: list[float], top_k: int, min_p: float) -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper

    scores, ids = torch.tensor([logits], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.long)
    wanted = MinPLogitsWarper(min_p)(ids, scores.clone()) if min_p > 0 else scores
    wanted = TopKLogitsWarper(top_k)(ids, wanted)
    assert torch.equal(limited(scores, TokenChoiceFields(top_k=top_k, min_p=min_p)), wanted)


def test_without_penalties_and_limits_nothing_is_computed() -> None:
    logits = torch.randn(2, VOCABULARY)
    rows = [row([1], [2]), row([3], [])]
    assert penalised(logits, rows, TokenChoiceFields()) is logits
    assert limited(logits, TokenChoiceFields()) is logits


@pytest.mark.parametrize("name", ["top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_vllm_gets_the_same_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_sampler = pytest.importorskip("wrpo_engine.sampling.vllm_sampler")
    value = {"top_k": 3, "min_p": 0.25, "repetition_penalty": 1.5}.get(name, 0.5)
    sampler = vllm_sampler.VllmSampler.__new__(vllm_sampler.VllmSampler)
    monkeypatch.setattr(
        sampler,
        "_settings",
        SamplerSettings(
            temperature=1.0, top_p=1.0, max_tokens=8, stop_token_ids=(), choice=TokenChoiceFields(**{name: value})
        ),
        raising=False,
    )
    monkeypatch.setattr(sampler, "_sampling_params", dict, raising=False)
    request = SampleRequest(key="x", prompt_token_ids=[1], num_samples=2, seed=1)
    assert sampler._params(request)[name] == value
