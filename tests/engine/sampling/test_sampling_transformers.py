"""The Transformers backend gives what the model gives, however rows share batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import make_tokenizer

from wrpo_engine.errors import DataError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.sampling.grouped_attention import NAME
from wrpo_engine.sampling.sampler import FinishReason, Sampled, SampleRequest, SamplerSettings
from wrpo_engine.sampling.transformers_sampler import TransformersSampler

Answers = dict[str, Sampled]


def sampler_of(model: Path, **changes: Any) -> TransformersSampler:
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 12, "stop_token_ids": (2,), **changes}
    return TransformersSampler(
        ResolvedModel(model, "tiny", None), AutoTokenizer.from_pretrained(model), SamplerSettings(**options)
    )


def request(key: str, length: int, *, num_samples: int = 3, group: int = 0) -> SampleRequest:
    ids = [5 + (index * 7 + length) % 200 for index in range(length)]
    return SampleRequest(key=key, prompt_token_ids=ids, num_samples=num_samples, seed=97 * length, group=group)


REQUESTS = [request(f"{length}", length) for length in (3, 40, 17, 9)]


def answers(sampler: TransformersSampler, requests: list[SampleRequest] = REQUESTS) -> Answers:
    return {sampled.key: sampled for sampled in sampler.sample(requests)}


@pytest.mark.parametrize("batch_tokens", [1, 150, 300])
def test_batches_of_any_size_give_the_same_answers(tiny_model_dir: Path, batch_tokens: int) -> None:
    """Small ones give rows back while these run, and read them again later."""
    assert answers(sampler_of(tiny_model_dir, batch_tokens=batch_tokens)) == answers(sampler_of(tiny_model_dir))


def test_a_group_is_never_batched_with_another(tiny_model_dir: Path) -> None:
    grouped = [request(one.key, len(one.prompt_token_ids), group=number // 2) for number, one in enumerate(REQUESTS)]
    sampler, widths = sampler_of(tiny_model_dir), []
    forward = sampler._forward

    def record(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        widths.append(tuple(ids.shape))
        return forward(ids, *rest)

    sampler._forward = record  # type: ignore[assignment,method-assign] # it passes on what it is given
    answers(sampler, grouped)
    # Each prompt is read once for its three answers, with the other prompt of its group.
    assert [shape for shape in widths if shape[1] > 1] == [(2, 40), (2, 17)]
    assert (6, 1) in widths


def test_shared_key_value_heads_are_read_in_place_with_the_same_answers(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = sampler_of(tiny_model_dir)
    assert shared._model.config._attn_implementation == NAME
    expected = answers(shared)
    plain = sampler_of(tiny_model_dir)
    plain._model.set_attn_implementation("sdpa")
    assert answers(plain) == expected


def test_scores_with_a_soft_cap_are_not_left_to_attention_that_ignores_it(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        query_pre_attn_scalar=1,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=30.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sampled = answers(sampler_of(tmp_path, temperature=0.0, max_tokens=8))
    reference = Gemma2ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    for one in REQUESTS:
        ids = torch.tensor([list(one.prompt_token_ids)])
        whole = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        expected = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        assert {sample.text for sample in sampled[one.key].samples} == {expected}


def test_stop_texts_end_answers_and_are_not_part_of_them(tiny_model_dir: Path) -> None:
    whole = answers(sampler_of(tiny_model_dir))
    text = whole["17"].samples[1].text
    stop = text[5:7]
    cut = answers(sampler_of(tiny_model_dir, stop=(stop, "not there")))
    for key, sampled in cut.items():
        for mine, full in zip(sampled.samples, whole[key].samples, strict=True):
            assert mine.text == full.text.partition(stop)[0]
            if stop in full.text:
                assert mine.finish_reason == FinishReason.STOP
                assert mine.num_tokens < full.num_tokens or full.text.endswith(stop)
    assert cut["17"].samples[1].text == text.partition(stop)[0]


def test_greedy_answers_are_made_once_and_keep_their_seeds(tiny_model_dir: Path) -> None:
    sampled = answers(sampler_of(tiny_model_dir, temperature=0.0))["9"]
    assert len({sample.text for sample in sampled.samples}) == 1
    assert [sample.seed for sample in sampled.samples] == [873, 874, 875]


def test_a_prompt_that_fills_the_context_has_empty_answers(tiny_model_dir: Path) -> None:
    samples = answers(sampler_of(tiny_model_dir, max_model_length=40))["40"].samples
    assert [(sample.text, sample.num_tokens, sample.finish_reason) for sample in samples] == [
        ("", 0, FinishReason.LENGTH)
    ] * 3


def test_scores_that_are_no_numbers_are_an_error(tiny_model_dir: Path) -> None:
    sampler = sampler_of(tiny_model_dir)
    with torch.no_grad():
        sampler._model.lm_head.weight[7] = float("nan")
    with pytest.raises(DataError) as error:
        answers(sampler)
    assert error.value.code == "LogitsNotFinite"
    assert error.value.message == "tiny gave NaN where the next token's scores should be"


def test_the_token_that_ends_an_answer_is_not_in_its_text_whatever_it_is(tiny_model_dir: Path) -> None:
    """A stop token may be one that is not marked as special, or a line break."""

    def answered(stop: int) -> tuple[list[int], int, FinishReason]:
        sampler = sampler_of(tiny_model_dir, temperature=0.0, stop_token_ids=(stop,))
        # Random weights give no text: the ids are shown instead.
        sampler._decode = lambda tokens: json.dumps(list(tokens))  # type: ignore[method-assign]
        sample = answers(sampler, [request("a", 9)])["a"].samples[0]
        return json.loads(sample.text), sample.num_tokens, sample.finish_reason

    ids, _, reason = answered(stop=2)
    assert (len(ids), reason) == (12, FinishReason.LENGTH)
    last = next(place for place in range(1, 12) if ids[place] not in ids[:place])
    assert answered(stop=ids[last]) == (ids[:last], last + 1, FinishReason.STOP)
