"""Samples depend on prompts, model and seed: never on shards, batches or interruptions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from engine_support import save_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from wrpo_engine.artifacts.parts import parts_of_shard
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.sampling import stage
from wrpo_engine.sampling.requests import parts_of
from wrpo_engine.sampling.sampler import FinishReason, Sample, Sampled, SampleRequest, SamplerSettings, prompt_seed
from wrpo_engine.stage import StopRequest

PROMPTS = [f"question number {number}?" for number in range(11)]


class EchoSampler:
    """Answers with what it was asked, so that any mix-up shows; optionally fails after some prompts."""

    def __init__(self, *, fail_after: int | None = None, stop: StopRequest | None = None) -> None:
        self.asked: list[str] = []
        self._fail_after = fail_after
        self._stop = stop

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        # Backwards, as a real engine finishes in any order.
        for request in reversed(requests):
            asked = hashlib.sha256(str(list(request.prompt_token_ids)).encode()).hexdigest()
            if self._fail_after is not None and len(self.asked) >= self._fail_after:
                if self._stop is None:
                    raise RuntimeError("killed")
                self._stop.request()
            self.asked.append(request.key)
            yield Sampled(
                key=request.key,
                samples=tuple(
                    Sample(
                        text=f"{asked} {index}",
                        num_tokens=index + 1,
                        finish_reason=FinishReason.STOP,
                        seed=request.seed + index,
                    )
                    for index in range(request.num_samples)
                ),
            )

    def close(self) -> None:
        pass


@pytest.fixture
def prompts(commit_artifact: Any) -> ArtifactRef:
    ids = [hashlib.sha256(text.encode()).hexdigest() for text in PROMPTS]
    table = pl.DataFrame({"prompt_id": ids, "prompt": PROMPTS})
    return commit_artifact(
        "prepare", {"sft.parquet": table[:4], "preference.parquet": table[4:10], "evaluation.parquet": table[10:]}
    )


def params(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "stage": "sample",
        "source": "tiny",
        "model": {"name": str(model)},
        "backend": "Transformers",
        "samples_per_prompt": 2,
        "max_tokens": 6,
        "prompts_per_part": 3,
        **changes,
    }


@pytest.fixture
def run_with(
    make_ctx: Any, prompts: ArtifactRef, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Any:
    def run(
        sampler: Any = None, *, stop: StopRequest | None = None, shard: int = 0, shards: int = 1, **options: Any
    ) -> Any:
        if sampler is not None:
            monkeypatch.setattr(stage, "make_sampler", lambda *_: sampler)
        ctx = make_ctx(
            params(options.pop("model", tiny_model_dir), **options.pop("changes", {})),
            {"prompts": prompts},
            stage="sample/tiny",
            runtime={"shards": shards},
            shard=shard,
            stop=stop,
            hash_=options.pop("hash_", "00000000000000aa"),
        )
        return ctx, stage.run(ctx)

    return run


def file_digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@given(num_parts=st.integers(0, 50), shards=st.integers(1, 9))
def test_every_part_belongs_to_exactly_one_shard(num_parts: int, shards: int) -> None:
    owned = [part for shard in range(shards) for part in parts_of_shard(range(num_parts), shard, shards)]
    assert sorted(owned) == list(range(num_parts))


@given(num_parts=st.integers(0, 200), shards=st.integers(1, 17))
def test_shards_have_as_many_parts_as_each_other(num_parts: int, shards: int) -> None:
    counts = [len(parts_of_shard(range(num_parts), shard, shards)) for shard in range(shards)]
    assert max(counts) - min(counts) <= 1


@given(before=st.integers(1, 16), after=st.integers(1, 16), lost=st.data())
def test_what_one_shard_left_undone_is_shared_by_any_other_number_of_shards(
    before: int, after: int, lost: st.DataObject
) -> None:
    shard = lost.draw(st.integers(0, before - 1))
    undone = set(parts_of_shard(range(2000), shard, before))
    shares = [len(undone.intersection(parts_of_shard(range(2000), new, after))) for new in range(after)]
    if before != after:
        assert max(shares) <= 2 * len(undone) / after + 1


@given(num_rows=st.integers(0, 100), per_part=st.integers(1, 9))
def test_parts_hold_every_row_once_in_order(num_rows: int, per_part: int) -> None:
    rows = [(str(number), "text") for number in range(num_rows)]
    assert [row for part in parts_of(rows, per_part) for row in part.rows] == rows


def test_any_number_of_shards_gives_the_same_bytes(run_with: Any) -> None:
    whole, result = run_with(EchoSampler(), hash_="00000000000000aa")
    assert result.rows == 20
    for shard in (2, 0, 1):
        split, _ = run_with(EchoSampler(), shard=shard, shards=3, hash_="00000000000000bb")
    assert split.output.committed().manifest.files == whole.output.committed().manifest.files
    assert split.output.committed().manifest.metrics == whole.output.committed().manifest.metrics


def test_nothing_is_committed_before_every_shard_is_done(run_with: Any) -> None:
    ctx, result = run_with(EchoSampler(), shard=1, shards=2)
    assert ctx.output.committed() is None
    assert result.metrics == {}
    assert result.rows == 12


def test_a_killed_stage_continues_and_ends_with_the_same_bytes(run_with: Any) -> None:
    whole, _ = run_with(EchoSampler(), hash_="00000000000000aa")
    with pytest.raises(RuntimeError, match="killed"):
        run_with(EchoSampler(fail_after=6), hash_="00000000000000bb")
    second = EchoSampler()
    resumed, _ = run_with(second, hash_="00000000000000bb")
    # Parts of 3, 3, 3 and 1 prompts, answered backwards: two parts were published before the kill.
    assert len(second.asked) == 6
    whole_files, resumed_files = file_digests(whole.output.directory), file_digests(resumed.output.directory)
    assert len(whole_files) == 5
    whole_manifest = (whole.output.directory / "manifest.json").read_text()
    assert (resumed.output.directory / "manifest.json").read_text() == whole_manifest.replace("0000aa", "0000bb")
    del whole_files["manifest.json"], resumed_files["manifest.json"]
    assert resumed_files == whole_files


def test_a_stop_request_ends_between_prompts_and_keeps_finished_parts(run_with: Any) -> None:
    stop = StopRequest()
    with pytest.raises(Interrupted):
        run_with(EchoSampler(fail_after=5, stop=stop), stop=stop)
    second = EchoSampler()
    ctx, _ = run_with(second)
    assert len(second.asked) == 6
    assert ctx.output.committed() is not None


def test_rows_say_who_answered_what_with_which_seed(run_with: Any) -> None:
    ctx, _ = run_with(EchoSampler())
    rows = pl.concat([pl.read_parquet(ctx.output.committed().file(name)) for name in ctx.output.committed().files()])
    prompt_id = hashlib.sha256(PROMPTS[0].encode()).hexdigest()
    first = rows.filter(pl.col("prompt_id") == prompt_id).to_dicts()
    seed = prompt_seed(42, f"{ctx.config.params.model.name}@None", prompt_id)
    assert [(row["sample_index"], row["seed"], row["num_tokens"]) for row in first] == [(0, seed, 1), (1, seed + 1, 2)]
    assert {row["source"] for row in first} == {"tiny"}
    assert rows["prompt_id"].n_unique() == 10


@given(seed=st.integers(0, 2**32), prompt_id=st.text(max_size=8))
def test_seeds_fit_a_signed_64_bit_number(seed: int, prompt_id: str) -> None:
    assert 0 <= prompt_seed(seed, "model", prompt_id) + 1024 < 2**63


def test_a_prompt_longer_than_the_context_fails_and_is_named(run_with: Any, tmp_path: Path) -> None:
    small = save_tiny_model(tmp_path / "small", context=30)
    with pytest.raises(DataError) as error:
        run_with(EchoSampler(), model=small)
    prompt_id = hashlib.sha256(PROMPTS[0].encode()).hexdigest()
    assert error.value.message == (
        f"prompt {prompt_id} has 37 tokens with the chat template, but the context of {small} "
        "holds 30 for prompt and response together"
    )
    assert error.value.hint == (
        "Set sampling.onPromptTooLong: Skip to leave such prompts out, or raise sampling.maxModelLength."
    )


def test_skipped_prompts_are_recorded_and_counted(run_with: Any, tmp_path: Path) -> None:
    small = save_tiny_model(tmp_path / "small", context=30)
    ctx, result = run_with(EchoSampler(), model=small, changes={"on_prompt_too_long": "Skip"})
    rows = pl.read_parquet(ctx.output.committed().file("parts/part-00000.parquet"))
    assert rows["finish_reason"].to_list() == ["prompt_too_long"] * 3
    assert rows["text"].to_list() == [""] * 3
    assert result.metrics["skipped_prompt_too_long"] == 10


def test_a_model_that_does_not_exist_is_named(run_with: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run_with(EchoSampler(), model=tmp_path / "none")
    assert error.value.message == (f"sources[tiny].model is '{tmp_path}/none': there is no directory {tmp_path}/none")
    assert error.value.code == "ModelNotFound"


def test_weights_that_are_not_safetensors_are_refused(run_with: Any, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    (tmp_path / "old" / "pytorch_model.bin").write_text("")
    with pytest.raises(ConfigError) as error:
        run_with(EchoSampler(), model=tmp_path / "old")
    assert error.value.message.endswith("old holds no *.safetensors (found: pytorch_model.bin)")


def test_a_hub_model_that_is_not_in_the_offline_cache_is_named(run_with: Any) -> None:
    with pytest.raises(ConfigError) as error:
        run_with(EchoSampler(), model=Path("nobody/nothing"))
    assert error.value.message == (
        "sources[tiny].model is 'nobody/nothing': it is not in the local cache, and HF_HUB_OFFLINE forbids downloading"
    )


def test_no_prompts_is_an_error_before_any_model_is_loaded(commit_artifact: Any, make_ctx: Any) -> None:
    table = pl.DataFrame(schema={"prompt_id": pl.String, "prompt": pl.String})
    ref = commit_artifact("prepare", {"preference.parquet": table})
    ctx = make_ctx(params(Path("/none"), parts=["preference"]), {"prompts": ref}, stage="sample/tiny")
    with pytest.raises(DataError) as error:
        stage.run(ctx)
    assert error.value.message == ("stage sample/tiny has no prompts: its parts (preference) are empty")


def test_vllm_without_vllm_names_the_other_backend(run_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError) as error:
        run_with(changes={"backend": "vLLM"})
    assert error.value.message.startswith("sampling.backend is 'vLLM': vLLM is not installed in this image")
    assert error.value.hint == "Set sampling.backend: Transformers, or use an image with vLLM (images.sampler)."


@pytest.fixture(scope="module")
def tiny_sampler(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    from wrpo_engine.hub.models import ResolvedModel
    from wrpo_engine.sampling.transformers_sampler import TransformersSampler

    def make(**changes: Any) -> TransformersSampler:
        options: dict[str, Any] = {
            "temperature": 0.8,
            "top_p": 0.95,
            "max_tokens": 8,
            "stop_token_ids": (2,),
            **changes,
        }
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
        model = ResolvedModel(tiny_model_dir, "tiny", None)
        return TransformersSampler(model, tokenizer, SamplerSettings(**options | changes))

    return make


def request(key: str, length: int, *, num_samples: int = 2, group: int = 0) -> SampleRequest:
    ids = [5 + (index * 7 + length) % 200 for index in range(length)]
    return SampleRequest(key=key, prompt_token_ids=ids, num_samples=num_samples, seed=len(key) + length, group=group)


def test_left_padding_changes_nothing(tiny_sampler: Any) -> None:
    sampler = tiny_sampler()
    requests = [request("a", 3), request("b", 17), request("c", 9)]
    together = {sampled.key: sampled.samples for sampled in sampler.sample(requests)}
    for one in requests:
        assert next(iter(sampler.sample([one]))).samples == together[one.key]


def test_greedy_answers_equal_those_of_transformers_generate(tiny_sampler: Any, tiny_model_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    requests = [request("a", 4, num_samples=1), request("b", 12, num_samples=1)]
    sampled = {one.key: one.samples[0] for one in tiny_sampler(temperature=0.0).sample(requests)}
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model_dir),
        AutoTokenizer.from_pretrained(tiny_model_dir),
    )
    for one in requests:
        ids = torch.tensor([list(one.prompt_token_ids)])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert sampled[one.key].text == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_seeds_decide_the_answers(tiny_sampler: Any) -> None:
    first, second = next(iter(tiny_sampler().sample([request("a", 5)]))).samples
    assert first.text != second.text
    assert [first.seed, second.seed] == [6, 7]
    again = next(iter(tiny_sampler().sample([request("a", 5)]))).samples
    assert again == (first, second)


def test_answers_end_at_the_context_limit(tiny_sampler: Any) -> None:
    samples = next(iter(tiny_sampler(max_model_length=10, max_tokens=50).sample([request("a", 7)]))).samples
    assert [(sample.num_tokens, sample.finish_reason) for sample in samples] == [(3, FinishReason.LENGTH)] * 2


def test_a_stop_request_does_not_wait_for_the_batch(tiny_sampler: Any) -> None:
    steps: list[int] = []

    def stop_at_the_third_step() -> None:
        steps.append(len(steps))
        if len(steps) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        list(tiny_sampler(poll=stop_at_the_third_step, max_tokens=50).sample([request("a", 5)]))
    assert len(steps) == 3


def test_rows_that_finish_early_leave_the_batch_without_changing_the_others(tiny_sampler: Any) -> None:
    # With half of all tokens ending an answer, rows finish at every step.
    sampler = tiny_sampler(stop_token_ids=tuple(range(0, 300, 2)), max_tokens=12)
    requests = [request(f"{number}", 3 + number, num_samples=2) for number in range(6)]
    together = {sampled.key: sampled.samples for sampled in sampler.sample(requests)}
    assert len({sample.num_tokens for samples in together.values() for sample in samples}) > 2
    for one in requests:
        assert next(iter(sampler.sample([one]))).samples == together[one.key]


def test_an_answer_ends_with_its_stop_token(tiny_sampler: Any) -> None:
    every_token = tuple(range(300))
    samples = next(iter(tiny_sampler(stop_token_ids=every_token).sample([request("a", 7)]))).samples
    assert [(sample.num_tokens, sample.finish_reason) for sample in samples] == [(1, FinishReason.STOP)] * 2


@settings(deadline=None)
@given(
    weights=st.lists(st.floats(1e-6, 1), min_size=1, max_size=12),
    draw=st.floats(0, 1, exclude_max=True),
    top_p=st.floats(0.01, 1),
    candidates=st.integers(1, 12),
)
def test_the_nucleus_is_the_inverse_of_the_cumulated_likeliest_tokens(
    weights: list[float], draw: float, top_p: float, candidates: int
) -> None:
    import torch

    from wrpo_engine.sampling.transformers_sampler import nucleus_choice

    probabilities = np.array(weights) / np.sum(weights)
    order = sorted(range(len(weights)), key=lambda token: (-probabilities[token], token))
    nucleus: list[int] = []
    while not nucleus or (sum(probabilities[token] for token in nucleus) < top_p and len(nucleus) < len(order)):
        nucleus.append(order[len(nucleus)])
    target = draw * sum(probabilities[token] for token in nucleus)
    chosen = nucleus_choice(torch.tensor(probabilities).unsqueeze(0), torch.tensor([draw], dtype=torch.float64), top_p)[
        0
    ]
    position = order.index(chosen)
    below = sum(probabilities[token] for token in order[:position])
    assert position <= len(nucleus)
    assert below - 1e-9 <= target <= below + probabilities[chosen] + 1e-9
