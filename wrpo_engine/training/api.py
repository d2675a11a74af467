"""Python API of preference training, without Kubernetes, configuration files and upstream artifacts.

    trained = train_triples("/models/target", "/data/triples.parquet", "/results", beta=0.01)

The operator's pods run the same code. The result is an artifact below the output directory, addressed by everything
that it depends on. Calling again with the same arguments returns it at once. Calling again after an interruption
resumes from the last checkpoint. Other settings create another artifact in the same directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wrpo_engine.artifacts.manifest import sha256_of
from wrpo_engine.config import CONTRACT_VERSION, TrainParams
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.errors import ConfigError
from wrpo_engine.hub.model_digest import DigestMemory, model_digest
from wrpo_engine.process.environment import prepare_environment
from wrpo_engine.process.progress import make_progress
from wrpo_engine.stage import StopRequest, make_context
from wrpo_engine.training.data.triples_in_memory import plain_rows

_INPUTS = "inputs"
_ARGUMENTS = {"stage": "train_triples trains", "tokenized_triples": "the triples are a separate argument"}
"""Fields of TrainParams that the call sets itself."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of training."""

    model: Path
    """A Hugging Face model directory."""
    directory: Path
    """The artifact: metrics.jsonl, eval.jsonl if rows were held out, the model card, the manifest, the model."""
    metrics: dict[str, float]
    """Metrics of the last step, and as eval_* those of the last evaluation of the exported weights."""
    num_steps: int

    def history(self) -> list[dict[str, float]]:
        """Return the rows of metrics.jsonl, one for every optimizer step."""
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]


def train_triples(
    model: str | Path,
    triples: Any,
    output: str | Path,
    *,
    runtime: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Trained:
    """Train on tokenised triples and return the trained model and its metrics.

    `model` is a Hugging Face model directory (safetensors) or hub id; it is also the reference. `triples` is a Parquet
    file, a directory of them, a saved `datasets` directory, or rows in memory: mappings (a list, a generator, a
    `datasets` Dataset in any format) or a data frame of polars, pandas or Arrow. Its columns `prompt_ids`,
    `source_chosen_ids`, `target_chosen_ids` and `rejected_ids` hold token ids as lists, numpy arrays or torch tensors
    of one dimension, which are used unchanged. `settings` are the fields of `wrpo_engine.config.TrainParams`,
    `runtime` those of `Runtime`. Under torchrun every rank makes the same call.

    Raises a `WrpoError` (wrpo_engine.errors) that names the wrong field and value. On SIGTERM it finishes the step,
    writes a checkpoint and raises `Interrupted`, if it was called from the main thread.
    """
    prepare_environment(os.environ, is_training=True)
    for argument, value in (("model", model), ("output", output)):
        if not isinstance(value, str | os.PathLike):
            raise ConfigError(argument, type(value).__name__, "it must be a path", f"Give {argument} as str or Path.")
    for name, why in _ARGUMENTS.items():
        if name in settings:
            raise ConfigError(name, settings[name], f"it cannot be set: {why}", f"Remove {name}.")
    root = Path(output).absolute()
    root.mkdir(parents=True, exist_ok=True)
    rows = _rows_path(triples, root)
    name = str(Path(model).absolute()) if Path(model).is_dir() else str(model)
    params = {"stage": "train", "model": {"name": name}, **settings, "tokenized_triples": str(rows)}
    config = _config(params, rows, runtime or {}, DigestMemory(root / _INPUTS / "model-digests.json"))
    environ = {**os.environ, "WRPO_VOLUME_ROOT": str(root)}
    is_main = environ.get("RANK", "0") == "0"
    progress = make_progress("train", environ, time.monotonic, is_main=is_main)
    try:
        with _stopped_by_sigterm() as stop:
            ctx = make_context(config, environ=environ, clock=lambda: datetime.now(UTC), progress=progress, stop=stop)
            if ctx.output.committed() is None:
                # Imported here, because returning an existing artifact needs no torch.
                from wrpo_engine.training.stage import run_train

                run_train(ctx)
    finally:
        progress.close()
    artifact = ctx.output.committed()
    assert artifact is not None, "the stage commits or raises"
    return Trained(
        model=artifact.directory / "model",
        directory=artifact.directory,
        metrics=dict(artifact.manifest.metrics),
        num_steps=int(artifact.manifest.details["step"]),
    )


@contextmanager
def _stopped_by_sigterm() -> Iterator[StopRequest]:
    """Convert SIGTERM to a stop request and restore the caller's handler afterwards; in the main thread only."""
    stop = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    # Python sets handlers in the main thread only. None is a handler that Python has not set and cannot restore.
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield stop
        return
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.request())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _rows_path(triples: Any, root: Path) -> Path:
    """Return the path of the rows; rows in memory are written to a file named by their content."""
    if isinstance(triples, str | os.PathLike):
        return Path(triples).absolute()
    import polars as pl

    rows = plain_rows(triples)
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    path = root / _INPUTS / f"{digest}.parquet"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(temporary)
        temporary.replace(path)
    return path


def _config(params: Mapping[str, Any], rows: Path, runtime: Any, memory: DigestMemory) -> StageConfig:
    try:
        validated = TrainParams.model_validate(params)
        directory = Path(validated.model.name or "")
        # Name and revision identify a model of a hub.
        model = model_digest(directory, memory.sha256_of) if directory.is_absolute() else None
        settings = validated.model_dump(mode="json", exclude={"tokenized_triples"})
        facts = [CONTRACT_VERSION, settings, model, _content(rows)]
        address = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return StageConfig.model_validate(
            {
                "experiment": "python/train",
                "output": {"stage": "train", "hash": address},
                "storage": {"kind": "volume"},
                # Without defaults: an explicit setting that has no effect is refused, a default is not.
                "params": validated.model_dump(mode="json", exclude_unset=True),
                "runtime": dict(runtime) if isinstance(runtime, Mapping) else runtime,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            field, str(first["input"])[:80], first["msg"], "See wrpo_engine.config.TrainParams and Runtime."
        ) from error


def _content(path: Path) -> list[str]:
    """Return the digests of the input's files; none for a missing path, which training reports."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [f"{file.relative_to(path).as_posix()} {sha256_of(file)}" for file in files]
