"""Runs of the inspect stage, and models with their weights in several files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_support import NOON, stage_config
from safetensors.numpy import load_file, save_file

from wrpo_engine import running
from wrpo_engine.config import ArtifactRef, TerminationMessage
from wrpo_engine.contract.storage import S3Storage, VolumeStorage
from wrpo_engine.stage import StopRequest

REF = ArtifactRef(stage="inspect/tiny", hash="00000000000000aa")
INDEX = "model.safetensors.index.json"


def use(purpose: str, field: str = "sources[a]", **more: Any) -> dict[str, Any]:
    """A use of a model: by default by a source, with vLLM, without code."""
    backend = "vLLM" if purpose == "sample" else "Transformers"
    return {"field": field, "purpose": purpose, "backend": backend, **more}


def run_stage(
    directory: Path,
    params: Mapping[str, Any],
    *,
    ref: ArtifactRef = REF,
    runtime: Mapping[str, Any] | None = None,
    storage: VolumeStorage | S3Storage | None = None,
    **environ: str,
) -> tuple[int, TerminationMessage]:
    """Run a stage as its process does, with the storage in `directory`."""
    config = stage_config(dict(params), stage=ref.stage, hash_=ref.hash, runtime=runtime)
    config = config if storage is None else config.model_copy(update={"storage": storage})
    path, outcome, root = directory / "stage.json", directory / "outcome", directory / "storage"
    root.mkdir(parents=True, exist_ok=True)
    outcome.unlink(missing_ok=True)
    path.write_text(config.model_dump_json(), encoding="utf-8")
    env = {
        "WRPO_VOLUME_ROOT": str(root),
        "WRPO_TERMINATION_MESSAGE_PATH": str(outcome),
        "WRPO_HUB_PATIENCE_SECONDS": "0.2",
        **environ,
    }
    code = running.run(config.params.kind(), path, env, stop=StopRequest(), clock=lambda: NOON)
    return code, TerminationMessage.model_validate_json(outcome.read_bytes())


def inspect(
    directory: Path,
    name: str,
    uses: Sequence[Mapping[str, Any]] = (),
    *,
    revision: str | None = None,
    storage: VolumeStorage | S3Storage | None = None,
    **environ: Any,
) -> tuple[int, TerminationMessage]:
    """Run the inspect stage."""
    params = {"stage": "inspect", "model": {"name": name, "revision": revision}, "uses": list(uses)}
    return run_stage(directory, params, storage=storage, **environ)


def refusal(directory: Path, name: str, uses: Sequence[Mapping[str, Any]] = (), **more: Any) -> tuple[str, str, str]:
    """Return code, message and hint of the final error of the inspect stage."""
    exit_code, message = inspect(directory, name, uses, **more)
    assert message.error is not None
    assert exit_code in {65, 78}, message
    assert message.facts is None
    return message.error.code, message.error.message, message.error.hint or ""


def files_of(directory: Path) -> dict[str, bytes]:
    """Return the files of a model's directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def shard(source: Path, target: Path, *, total_size: Any = ...) -> Path:
    """Copy a model with its weights in two files; `total_size` is what the index states, by default the truth."""
    target.mkdir(parents=True)
    for name, content in files_of(source).items():
        if name != "model.safetensors":
            (target / name).write_bytes(content)
    weights = load_file(source / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, target / file)
    stated = sum(each.nbytes for each in weights.values()) if total_size is ... else total_size
    index = {
        "metadata": {"total_size": stated},
        "weight_map": {name: file for file, held in parts.items() for name in held},
    }
    (target / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return target
