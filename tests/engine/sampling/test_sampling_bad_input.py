"""What is wrong is one clear error; what is odd is recorded and counted, never dropped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from engine_support import save_tiny_model
from support.patience import LIMIT_S

from wrpo_engine.config import ExitCode
from wrpo_engine.errors import ConfigError, DataError, TemporaryError, WrpoError
from wrpo_engine.loading.files import ModelDirectory
from wrpo_engine.sampling import stage, streaming, vllm_sampler
from wrpo_engine.sampling.engine_process import EngineOutput
from wrpo_engine.sampling.preflight import check_weight_files
from wrpo_engine.sampling.sampler import FinishReason, Sample, Sampled, SampleRequest, SamplerSettings
from wrpo_engine.sampling.vllm_sampler import VllmSampler, engine_options

EIGHT = "sampling.tensorParallelSize is 8: this pod has"
GREEDY = SamplerSettings(temperature=0.0, top_p=1.0, max_tokens=4, stop_token_ids=(2,))


class TextSampler:
    """Answers every prompt with the same texts; an empty one took one token, the last one reached the limit."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        for request in requests:
            yield Sampled(
                key=request.key,
                samples=tuple(
                    Sample(
                        text=text,
                        num_tokens=len(text) + 1,
                        finish_reason=FinishReason.LENGTH if index == len(self._texts) - 1 else FinishReason.STOP,
                        seed=request.seed + index,
                    )
                    for index, text in enumerate(self._texts)
                ),
            )

    def close(self) -> None:
        pass


class DyingEngine:
    """Answers a few prompts, then ends as vLLM's engine does when its process was killed."""

    def __init__(self, answers: int, error: Exception) -> None:
        self._answers, self._error = answers, error
        self._requests: list[str] = []
        self._has_died = False

    def add_request(self, key: str, *_: Any) -> None:
        if self._has_died:
            raise RuntimeError("EngineDeadError")
        self._requests.append(key)

    def step(self) -> list[Any]:
        if not self._answers:
            raise self._error
        keys, self._requests = self._requests[: self._answers], self._requests[self._answers :]
        self._answers, self._has_died = 0, True
        answer = SimpleNamespace(index=0, text="yes", token_ids=[5, 2], finish_reason="stop")
        return [SimpleNamespace(finished=True, request_id=key, outputs=[answer]) for key in keys]

    def abort_request(self, _keys: list[str]) -> None:
        raise self._error


@pytest.fixture
def run_stage(make_ctx: Any, commit_artifact: Any, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(prompts: Sequence[str], sampler: Any = None, *, shard: int = 0, shards: int = 1, **changes: Any) -> Any:
        if sampler is not None:
            monkeypatch.setattr(stage, "make_sampler", lambda *_: sampler)
        ids = [hashlib.sha256(text.encode()).hexdigest() for text in prompts]
        table = pl.DataFrame({"prompt_id": ids, "prompt": list(prompts)})
        params = {
            "stage": "sample",
            "source": "tiny",
            "model": {"name": str(tiny_model_dir)},
            "parts": ["preference"],
            "backend": "Transformers",
            "samples_per_prompt": 1,
            "max_tokens": 4,
            "prompts_per_part": 2,
            **changes,
        }
        hash_ = hashlib.sha256("".join(ids).encode()).hexdigest()[:16]
        ref = commit_artifact("prepare", {"preference.parquet": table}, hash_=hash_)
        ctx = make_ctx(params, {"prompts": ref}, stage="sample/tiny", runtime={"shards": shards}, shard=shard)
        return ctx, stage.run(ctx)

    return run


def test_truncated_empty_and_repeated_answers_are_kept_and_counted(
    run_stage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["same", "", "same", " \n", "same", "long"]
    with caplog.at_level("INFO", "wrpo_engine"):
        ctx, result = run_stage(["one?", "two?", "three?"], TextSampler(texts), samples_per_prompt=6)
    rows = pl.concat([pl.read_parquet(ctx.output.fetch(name)) for name in ctx.output.published("parts/")])
    assert rows["text"].to_list() == texts * 3
    counted = {name: result.metrics[name] for name in ("samples", "truncated", "empty", "repeated")}
    # The same text for another prompt is no repetition.
    assert counted == {"samples": 18, "truncated": 3, "empty": 6, "repeated": 6}
    assert ctx.output.committed().manifest.metrics == result.metrics
    assert caplog.messages[-1] == ("of 18 responses: 3 truncated, 6 empty, 6 repeated; all of them are in the artifact")


def test_more_shards_than_prompts_leave_shards_without_work(run_stage: Any) -> None:
    sampler = TextSampler(["yes"])
    rows = [run_stage(["one?", "two?", "three?"], sampler, shard=shard, shards=5)[1].rows for shard in range(5)]
    assert sorted(rows) == [0, 0, 0, 1, 2]
    ctx, again = run_stage(["one?", "two?", "three?"], sampler)
    assert (again.rows, ctx.output.committed().manifest.rows) == (0, 3)


def test_a_tokenizer_without_chat_template_names_the_model_and_the_field(run_stage: Any, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", template=None)
    with pytest.raises(ConfigError) as error:
        run_stage(["one?"], TextSampler(["yes"]), model={"name": str(base)})
    assert error.value.code == "MissingChatTemplate"
    assert error.value.field == "sources[tiny].chatTemplate"
    assert error.value.message == (
        f"sources[tiny].chatTemplate is '<unset>': the tokenizer of {base} has no chat template"
    )


@pytest.mark.timeout(LIMIT_S)
def test_a_prompt_of_a_megabyte_is_refused_or_skipped_before_a_model_is_loaded(run_stage: Any) -> None:
    huge = "All work and no play makes a dull day. " * 27_000
    unbroken = "x" * 1_000_000
    loaded = object()
    with pytest.raises(DataError) as error:
        run_stage(["one?", huge], loaded)
    assert error.value.code == "PromptTooLong"
    assert "1053019 tokens" in error.value.message
    assert len(error.value.message) < 500
    ctx, result = run_stage(["one?", huge, unbroken], TextSampler(["yes"]), on_prompt_too_long="Skip")
    assert result.metrics["skipped_prompt_too_long"] == 2
    rows = pl.concat([pl.read_parquet(ctx.output.fetch(name)) for name in ctx.output.published("parts/")])
    assert rows["finish_reason"].to_list() == ["length", "prompt_too_long", "prompt_too_long"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"quantization": "awq"}, "sampling.quantization"), ({"engine_args": {"max_num_seqs": 4}}, "sampling.engineArgs")],
)
def test_options_of_vllm_are_refused_before_anything_is_read(
    make_ctx: Any, commit_artifact: Any, changes: dict[str, Any], field: str
) -> None:
    ref = commit_artifact("prepare", {"preference.parquet": "not a table"})
    params = {"stage": "sample", "source": "tiny", "model": {"name": "/none"}, "backend": "Transformers", **changes}
    with pytest.raises(ConfigError) as error:
        stage.run(make_ctx(params, {"prompts": ref}, stage="sample/tiny"))
    assert error.value.field == field


def dying_sampler(
    monkeypatch: pytest.MonkeyPatch, answers: int, error: Exception, in_flight: int = GREEDY.in_flight
) -> VllmSampler:
    sampler = VllmSampler.__new__(VllmSampler)
    sampler._settings = replace(GREEDY, in_flight=in_flight)
    killed: Any = SimpleNamespace(exitcode=-9)
    sampler._processes = [killed]
    engine = DyingEngine(answers, error)
    sampler._llm, sampler._step, sampler._output = SimpleNamespace(llm_engine=engine), engine.step, EngineOutput()
    monkeypatch.setattr(VllmSampler, "_params", lambda *_: None)
    return sampler


@pytest.mark.parametrize("in_flight", [6, 3], ids=["in a step", "between two steps"])
def test_an_engine_that_dies_leaves_what_was_done_and_is_tried_again(
    run_stage: Any, monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    prompts = [f"{number}?" for number in range(6)]
    dead = RuntimeError("EngineCore encountered an issue.\nSee the stack trace.")
    with pytest.raises(TemporaryError) as error:
        run_stage(prompts, dying_sampler(monkeypatch, 3, dead, in_flight))
    assert error.value.code == "EngineDied"
    assert error.value.exit_code == ExitCode.TEMPORARY
    assert error.value.message == "vLLM's engine died: EngineCore encountered an issue."
    ctx, result = run_stage(prompts, TextSampler(["yes"]))
    # Of parts of two prompts the first was published; the third prompt is asked again with its part.
    assert result.rows == 4
    assert ctx.output.committed().manifest.rows == 6


def test_an_engine_without_memory_says_what_to_lower(run_stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    full = RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
    with pytest.raises(WrpoError) as error:
        run_stage(["one?"], dying_sampler(monkeypatch, 0, full))
    assert (error.value.code, error.value.field) == ("OutOfMemory", "sampling.gpuMemoryUtilization")


class Watch:
    """Records how the stage uses its watch."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, what: str, timeout_s: float, _environ: object) -> Watch:
        self.calls.append(f"{what.partition('/')[0].strip()} within {timeout_s} s")
        return self

    def beat(self) -> None:
        self.calls.append("beat")

    def __enter__(self) -> None:
        self.calls.append("start")

    def __exit__(self, *_: object) -> None:
        self.calls.append("end")


def test_every_decoding_step_is_progress_for_the_watch(run_stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    monkeypatch.setattr(streaming, "HangWatch", watch)
    made = SamplerSettings(temperature=0.0, top_p=1.0, max_tokens=4, stop_token_ids=())

    class Polling(TextSampler):
        def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
            assert made.poll is not None
            for _ in range(2):
                made.poll()
            yield from super().sample(requests)

    def make(_backend: object, _model: object, _tokenizer: object, settings: SamplerSettings) -> Polling:
        nonlocal made
        made = settings
        return Polling(["yes"])

    monkeypatch.setattr(stage, "make_sampler", make)
    run_stage(["one?"])
    assert watch.calls == ["sampling from within 1200 s", "start", "beat", "beat", "end"]


def test_an_engine_that_forgets_prompts_is_an_error(run_stage: Any) -> None:
    class Forgetful(TextSampler):
        def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
            return super().sample(list(requests)[:-1])

    with pytest.raises(TemporaryError) as error:
        run_stage(["one?", "two?", "three?"], Forgetful(["yes"]))
    assert error.value.message == (
        "Transformers ended without a response to every prompt; unfinished: parts/part-00001.parquet"
    )


def test_the_users_engine_arguments_come_last() -> None:
    settings = SamplerSettings(
        temperature=1.0,
        top_p=1.0,
        max_tokens=4,
        stop_token_ids=(),
        dtype="bfloat16",
        quantization="fp8",
        max_model_length=4096,
        tensor_parallel_size=4,
        gpu_memory_utilization=0.8,
        engine_args={"max_num_seqs": 512, "enable_prefix_caching": False},
    )
    assert engine_options(settings, on_cpu=False) == {
        "dtype": "bfloat16",
        "quantization": "fp8",
        "max_model_len": 4096,
        "tensor_parallel_size": 4,
        "gpu_memory_utilization": 0.8,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "max_num_seqs": 512,
        "load_format": "safetensors",
        "config_format": "hf",
        "tokenizer_mode": "hf",
    }
    assert engine_options(GREEDY, on_cpu=False)["enable_prefix_caching"] is True


@pytest.mark.parametrize(
    ("devices", "arguments", "message"),
    [
        (2, {}, f"{EIGHT} 2 GPUs"),
        (
            8,
            {"pipeline_parallel_size": 2},
            f"{EIGHT} 8 GPUs and needs 2 times as many with engineArgs.pipeline_parallel_size",
        ),
        (8, {}, None),
        (16, {"pipeline_parallel_size": 2}, None),
        # What is no number vLLM refuses itself.
        (8, {"pipeline_parallel_size": "many"}, None),
    ],
)
def test_more_devices_than_the_pod_has_are_refused(
    devices: int, arguments: dict[str, Any], message: str | None
) -> None:
    settings = replace(GREEDY, tensor_parallel_size=8, engine_args=arguments)
    if message is None:
        vllm_sampler._check_devices(settings, devices=devices)
        return
    with pytest.raises(ConfigError) as error:
        vllm_sampler._check_devices(settings, devices=devices)
    assert error.value.message == message


@pytest.mark.parametrize(("on_cpu", "prepared"), [(True, 0), (False, 1)])
def test_kernels_of_flashinfer_are_prepared_on_gpus(
    monkeypatch: pytest.MonkeyPatch, on_cpu: bool, prepared: int
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(vllm_sampler, "prepare_cubins", seen.append)
    vllm_sampler._prepare_environment(on_cpu=on_cpu)
    assert len(seen) == prepared
    # The engine has its own process on GPUs, as by vLLM's default.
    assert os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == ("0" if on_cpu else None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["model.safetensors", "consolidated.safetensors", "adapter_model.safetensors"],
            "vLLM would read adapter_model.safetensors, consolidated.safetensors in addition to model.safetensors",
        ),
        (
            ["consolidated.safetensors"],
            "it holds its weights only as consolidated.safetensors, which is not Transformers' format",
        ),
    ],
)
def test_weights_of_another_layout_are_refused_for_vllm(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError) as error:
        check_weight_files(ModelDirectory(tmp_path, "org/model", "sources[a].model"))
    assert message in error.value.message


def test_weights_of_another_layout_beside_an_index_are_not_read(tmp_path: Path) -> None:
    for name in ("model-00001-of-00001.safetensors", "consolidated.safetensors"):
        (tmp_path / name).touch()
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    check_weight_files(ModelDirectory(tmp_path, "org/model", "sources[a].model"))
