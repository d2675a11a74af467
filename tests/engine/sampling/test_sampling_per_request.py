"""Requests with their own temperature and length, requests that follow others, and prompts that are only read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import make_tokenizer, save_llama

from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.sampling import transformers_sampler
from wrpo_engine.sampling.sampler import Sampled, SampleRequest, SamplerSettings
from wrpo_engine.sampling.transformers_sampler import TransformersSampler
from wrpo_engine.sampling.vllm_sampler import engine_options

SETTINGS = SamplerSettings(temperature=0.8, top_p=0.95, max_tokens=10, stop_token_ids=(2,))


def sampler_of(model: Path, **changes: Any) -> TransformersSampler:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return TransformersSampler(ResolvedModel(model, "tiny", None), tokenizer, replace(SETTINGS, **changes))


def request(key: str, length: int, **changes: Any) -> SampleRequest:
    ids = [5 + (index * 7 + length) % 200 for index in range(length)]
    return SampleRequest(key=key, prompt_token_ids=ids, seed=97 * length, **{"num_samples": 2, **changes})


def answers(sampler: TransformersSampler, requests: Sequence[SampleRequest]) -> dict[str, Sampled]:
    return {sampled.key: sampled for sampled in sampler.sample(requests)}


def test_each_request_of_a_batch_has_its_own_temperature(tiny_model_dir: Path) -> None:
    asked = [request("cold", 9), request("warm", 12), request("hot", 15), request("usual", 11)]
    temperatures = {"cold": 0.0, "warm": 0.5, "hot": 2.0, "usual": None}
    together = answers(sampler_of(tiny_model_dir), [replace(one, temperature=temperatures[one.key]) for one in asked])
    for one in asked:
        own = temperatures[one.key]
        alone = sampler_of(tiny_model_dir, temperature=0.8 if own is None else own)
        assert together[one.key] == answers(alone, [one])[one.key]
    assert len({sample.text for sample in together["cold"].samples}) == 1
    assert len({sample.text for sample in together["hot"].samples}) == 2


def test_each_request_has_its_own_length(tiny_model_dir: Path) -> None:
    found = answers(sampler_of(tiny_model_dir), [request("a", 9, max_tokens=3), request("b", 9)])
    assert max(sample.num_tokens for sample in found["a"].samples) == 3
    assert max(sample.num_tokens for sample in found["b"].samples) == 10


def test_what_follows_a_finished_request_is_sampled_before_the_other_batches(tiny_model_dir: Path) -> None:
    asked = [request(str(number), 20) for number in range(4)]
    # Two rows to a batch.
    sampler = sampler_of(tiny_model_dir, batch_tokens=60)

    queue, order = deque(asked), []
    for sampled in sampler.sample(queue):
        order.append(sampled.key)
        if len(sampled.key) == 1:
            queue.extendleft(request(f"{sampled.key}.{number}", 25, num_samples=1) for number in range(2))
    assert sorted(order) == sorted([one.key for one in asked] + [f"{n}.{s}" for n in range(4) for s in range(2)])
    assert order.index("0.1") < order.index("2")
    assert order.index("1.1") < order.index("3")


def test_a_follower_that_would_change_positions_of_others_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    save_llama(tmp_path, make_tokenizer(), seed=0, max_position_embeddings=64, rope_parameters=rope)
    sampler = sampler_of(tmp_path)
    queue = deque([request("a", 20)])
    sampled = sampler.sample(queue)
    next(sampled)
    queue.appendleft(request("b", 70))
    with pytest.raises(ConfigError) as error:
        next(sampled)
    assert error.value.code == "PositionsVary"


def reference_logps(model: Any, ids: Sequence[int]) -> list[float]:
    with torch.inference_mode():
        logits = model(torch.tensor([list(ids)])).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(list(ids[1:])).unsqueeze(-1)).squeeze(-1).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
def test_prompts_are_read_in_chunks_with_the_numbers_of_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """With a sliding window, a soft cap on logits, and fewer heads for keys than for queries."""
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
        final_logit_softcapping=0.5,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(transformers_sampler, "_LOGITS_PER_CHUNK", chunk * config.vocab_size)
    monkeypatch.setattr(transformers_sampler, "_MIN_CHUNK_TOKENS", 1)
    sampler = sampler_of(tmp_path)
    widths: list[int] = []
    sampler._model.register_forward_hook(lambda _module, _inputs, output: widths.append(output.logits.shape[1]))
    asked = [request("a", 41), request("b", 5), request("one", 1)]
    found = {read.key: read.logps for read in sampler.prompt_logps(asked)}
    reference = Gemma2ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    for one in asked:
        assert found[one.key] == pytest.approx(reference_logps(reference, one.prompt_token_ids), abs=1e-5)
    assert found["one"] == ()
    assert max(widths) == min(chunk, 40)


def test_a_model_that_gives_no_numbers_for_a_prompt_is_an_error(tiny_model_dir: Path) -> None:
    sampler = sampler_of(tiny_model_dir)
    with torch.no_grad():
        sampler._model.lm_head.weight[7] = float("nan")
    with pytest.raises(DataError, match="tiny gave NaN where the next token's scores should be"):
        list(sampler.prompt_logps([request("a", 5)]))


def test_vllm_bounds_the_logits_of_prompts_that_it_reads() -> None:
    usual = engine_options(SETTINGS, on_cpu=False)
    assert "max_num_batched_tokens" not in usual
    reading = engine_options(replace(SETTINGS, reads_prompts=True), on_cpu=True, vocabulary=128_256)
    assert reading["max_num_batched_tokens"] == 523
    assert reading["enable_chunked_prefill"]
    assert reading["max_num_seqs"] == 128


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Arguments with which the same model samples well must not exceed the bound, nor contradict it.
        ({"max_num_batched_tokens": 16384, "max_num_seqs": 1024, "enable_chunked_prefill": False}, (523, 128)),
        ({"max_num_batched_tokens": 64}, (64, 64)),
        ({"max_num_seqs": 16}, (523, 16)),
    ],
)
def test_the_users_engine_arguments_lower_the_bound_and_never_raise_it(
    given: dict[str, Any], expected: tuple[int, int]
) -> None:
    settings = replace(SETTINGS, reads_prompts=True, engine_args={**given, "block_size": 32})
    options = engine_options(settings, on_cpu=False, vocabulary=128_256)
    assert (options["max_num_batched_tokens"], options["max_num_seqs"]) == expected
    assert (options["enable_chunked_prefill"], options["block_size"]) == (True, 32)
