"""The Python API of training, and the code blocks of the guide that describes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import save_tiny_model
from safetensors.torch import load_file, save_file
from support.patience import LIMIT_S, LONG_S
from training_support import FAST_ON_IDS, ROOT, plain_backend
from transformers import AutoModelForCausalLM

from wrpo_engine.config import TrainParams
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.errors import ConfigError, DataError, Interrupted
from wrpo_engine.training import session
from wrpo_engine.training.api import train_triples
from wrpo_engine.training.monitoring.callbacks import Observer, StepEnd

GUIDE = ROOT / "docs/guides/training-without-kubernetes.md"
ROWS = [
    {
        "prompt_ids": [10 + row, 11],
        "source_chosen_ids": [20, 21 + row, 2],
        "target_chosen_ids": [30 + row, 2],
        "rejected_ids": [40, 41, 42 + row, 2],
    }
    for row in range(8)
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "make_backend", plain_backend)
    # What importing the engine's environment sets must not outlive the test.
    for name, value in os.environ.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("plain")
def test_rows_in_memory_and_in_a_file_train_equally_and_are_separated_by_their_settings(
    training_model_dir: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = FAST_ON_IDS | {"beta": 0.1}
    ours = train_triples(training_model_dir, ROWS, tmp_path / "memory", **settings)
    pl.DataFrame(ROWS).write_parquet(tmp_path / "triples.parquet")
    theirs = train_triples(training_model_dir, tmp_path / "triples.parquet", tmp_path / "file", **settings)
    other = train_triples(training_model_dir, ROWS, tmp_path / "memory", **settings | {"beta": 0.2})
    assert ours.num_steps == len(ours.history()) == 4
    assert ours.metrics["loss"] == theirs.metrics["loss"] == ours.history()[-1]["loss"]
    assert other.directory != ours.directory
    assert other.directory.parent == ours.directory.parent
    AutoModelForCausalLM.from_pretrained(ours.model)


@pytest.mark.usefixtures("plain")
def test_the_same_call_again_returns_the_existing_artifact(
    training_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_triples(training_model_dir, ROWS, tmp_path, **FAST_ON_IDS)
    monkeypatch.setattr(session, "make_backend", None)
    assert train_triples(training_model_dir, ROWS, tmp_path, runtime={"micro_batch_size": 1}, **FAST_ON_IDS) == first


@pytest.mark.usefixtures("plain")
def test_what_is_wrong_is_named(training_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^learningrate is '1': Extra inputs are not permitted"):
        train_triples(training_model_dir, ROWS, tmp_path, learningrate=1)
    with pytest.raises(ConfigError, match=r"^training\.maxLength is 2048: it has no effect with training\.tokenizedTr"):
        train_triples(training_model_dir, ROWS, tmp_path, max_length=2048)
    with pytest.raises(ConfigError, match=r"^training\.alpha is 'Linear to 0\.1': it has no effect with objective DPO"):
        train_triples(training_model_dir, ROWS, tmp_path, objective="DPO", alpha={"schedule": "Linear", "max": 0.1})
    with pytest.raises(ConfigError, match="there is no such file or directory"):
        train_triples(training_model_dir, tmp_path / "none", tmp_path)
    with pytest.raises(DataError, match=r"rejected_ids of row 0 of .* is empty"):
        train_triples(training_model_dir, [{**ROWS[0], "rejected_ids": []}, ROWS[1]], tmp_path)


def _overflowing(model: Path, directory: Path) -> Path:
    """Copy a model whose every log-probability is not a number."""
    shutil.copytree(model, directory)
    weights = {name: tensor * float("nan") for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.usefixtures("plain")
def test_a_run_that_fails_before_its_first_step_leaves_no_watchdog_behind(
    training_model_dir: Path, tmp_path: Path
) -> None:
    model = _overflowing(training_model_dir, tmp_path / "model")
    with pytest.raises(DataError, match="log-probabilities of 8 rows are not finite"):
        train_triples(model, ROWS, tmp_path / "results", **FAST_ON_IDS)
    left = [thread for thread in threading.enumerate() if thread.name.startswith("watchdog")]
    for thread in left:
        thread.join(LIMIT_S)
    assert [thread.name for thread in left if thread.is_alive()] == []


@pytest.mark.usefixtures("plain")
def test_another_model_at_the_same_path_is_trained_again(training_model_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(training_model_dir, tmp_path / "model"))
    first = train_triples(model, ROWS, tmp_path / "results", **FAST_ON_IDS)
    weights = load_file(model / "model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    second = train_triples(model, ROWS, tmp_path / "results", **FAST_ON_IDS)
    assert second.directory != first.directory
    assert second.metrics["logps_rejected"] != first.metrics["logps_rejected"]


class Terminator(Observer):
    """Sends SIGTERM to this process after its second step."""

    def on_step(self, end: StepEnd) -> None:
        if end.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("plain")
def test_sigterm_saves_a_checkpoint_and_the_callers_own_handler_comes_back(
    training_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(session, "make_observers", lambda *_: (Terminator(),))
            with pytest.raises(Interrupted, match=r"^stopped on request after step [23] of 4; "):
                train_triples(training_model_dir, ROWS, tmp_path, **FAST_ON_IDS)
        assert heard == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(list(tmp_path.glob("train/*/checkpoints/step-0000000[23]/checkpoint.json"))) == 1
    trained = train_triples(training_model_dir, ROWS, tmp_path, **FAST_ON_IDS)
    assert [row["step"] for row in trained.history()] == [1, 2, 3, 4]


@pytest.mark.usefixtures("plain")
def test_it_trains_in_another_thread_too(training_model_dir: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train_triples, training_model_dir, ROWS, tmp_path, **FAST_ON_IDS).result().num_steps == 4


def test_the_guides_configuration_is_valid() -> None:
    (text,) = blocks("json")
    config = StageConfig.model_validate_json(text)
    assert isinstance(config.params, TrainParams)


TWICE = """
import sys
from wrpo_engine.training.api import train_triples
from wrpo_engine.training.monitoring.callbacks import Observer, StepEnd

rows = [{"prompt_ids": [10 + row, 11], "source_chosen_ids": [20, 21 + row, 2], "target_chosen_ids": [30 + row, 2],
         "rejected_ids": [40, 41, 42 + row, 2]} for row in range(4)]
for beta in (0.1, 0.2):
    for zero_stage in (0, 1, 3):
        trained = train_triples(sys.argv[1], rows, sys.argv[2], beta=beta, precision="float32", zero_stage=zero_stage)
        print(f"trained with {beta} at {zero_stage}: {trained.num_steps}", flush=True)
"""


@pytest.mark.slow
def test_several_runs_in_one_process_train_with_deepspeed(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    arguments = [sys.executable, "-c", TWICE, str(tmp_path / "model"), str(tmp_path / "results")]
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("trained with")]
    assert lines == [f"trained with {beta} at {stage}: 1" for beta in (0.1, 0.2) for stage in (0, 1, 3)]


@pytest.mark.slow
def test_the_guides_python_and_its_command_train_on_the_same_rows(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    pl.DataFrame(ROWS).write_parquet(tmp_path / "triples.parquet")
    (tmp_path / "results").mkdir()
    places = {
        "/models/target": str(tmp_path / "model"),
        "/data/triples.parquet": str(tmp_path / "triples.parquet"),
        "/results": str(tmp_path / "results"),
    }

    def here(text: str) -> str:
        for place, path in places.items():
            text = text.replace(place, path)
        return text

    (python,), (configuration,), (command,) = blocks("python"), blocks("json"), blocks("sh")
    (tmp_path / "train.json").write_text(here(configuration))
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }

    def run(arguments: list[str]) -> str:
        done = subprocess.run(
            arguments, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    model, loss, steps = run([sys.executable, "-c", here(python)]).split()[-3:]
    assert (Path(model) / "model.safetensors").is_file()
    assert float(loss) == pytest.approx(0.6931471805599453, abs=1e-6)
    assert steps == "1"
    run(["bash", "-euc", here(command)])
    artifact = tmp_path / "results/train/0123456789abcdef"
    manifest: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
    assert manifest["details"]["held_out_rows"] == 2
    assert manifest["metrics"]["eval_step"] == 1
    assert (artifact / "eval.jsonl").is_file()
