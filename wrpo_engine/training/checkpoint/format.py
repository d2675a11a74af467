"""Checkpoint format: atomic, verified, independent of world size, ZeRO stage and offload.

A checkpoint is one safetensors shard per rank that wrote it, `checkpoints/step-NNNNNNNN/rank-RRRRR.safetensors`, and
`checkpoint.json`, published last, which lists the shards with size and sha256. Every trainable parameter's fp32 weight
and its two Adam moments are stored whole, each by one rank. So any number of ranks and any ZeRO stage can resume from
it exactly: nothing is averaged or re-rounded. The data order, the random seeds, the learning rate and alpha are
functions of the step and need no state.

All files pass through the artifact's writer, so ranks need no shared directory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wrpo_engine.artifacts import ArtifactWriter
from wrpo_engine.artifacts.manifest import sha256_of
from wrpo_engine.errors import DataError, MissingInputError
from wrpo_engine.training.backends.base import TensorKind

CHECKPOINTS_PREFIX = "checkpoints/"
MARKER = "checkpoint.json"
_FORMAT = 1


def step_prefix(step: int) -> str:
    """Return the prefix of a checkpoint's files in the artifact, with a slash at the end."""
    return f"{CHECKPOINTS_PREFIX}step-{step:08d}/"


@dataclass(frozen=True, slots=True)
class Shard:
    """The file of one rank."""

    name: str
    """File name below the checkpoint's prefix."""
    size: int
    """Bytes."""
    sha256: str
    tensors: tuple[str, ...]
    """Names of its tensors, KIND/PARAMETER, sorted."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with a marker."""

    output: ArtifactWriter
    step: int
    """Optimizer steps completed."""
    world_size: int
    """Ranks of the run that wrote it."""
    shards: tuple[Shard, ...]
    state: Mapping[str, Any] = field(default_factory=dict)
    """State of the loop in addition to weights and optimizer, as JSON values."""
    _paths: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)
    """Local shards of this process; fetching them from the store again would cost a request per tensor."""

    def read(self, name: str, kind: TensorKind, span: tuple[int, int] | None = None) -> Tensor:
        """Return one whole fp32 tensor on the CPU, or only the elements [start, stop) of the flattened one.

        Raise DataError if no shard contains it.
        """
        key = f"{kind.value}/{name}"
        shard = next((shard for shard in self.shards if key in shard.tensors), None)
        if shard is None:
            raise DataError(
                f"checkpoint {step_prefix(self.step)} contains no {kind.value} of parameter {name}",
                code="CheckpointIncompatible",
                hint=f"Remove {CHECKPOINTS_PREFIX} of {self.output.ref.stage}/{self.output.ref.hash} "
                "to train from step 0.",
            )
        with safe_open(self.path(shard), framework="pt") as file:
            tensor: Tensor = file.get_tensor(key) if span is None else _elements(file, key, *span)
        return tensor

    def path(self, shard: Shard) -> Path:
        """Return the local path of a shard, which is fetched if needed."""
        if shard.name not in self._paths:
            self._paths[shard.name] = self.output.fetch(step_prefix(self.step) + shard.name)
        return self._paths[shard.name]


def _elements(file: Any, key: str, start: int, stop: int) -> Tensor:
    """Return elements of a flattened tensor and read only the rows that contain them."""
    stored = file.get_slice(key)
    shape = stored.get_shape()
    row = math.prod(shape[1:])
    if not shape or not row or start >= stop:
        whole: Tensor = file.get_tensor(key)
        return whole.reshape(-1)[start:stop]
    first = start // row
    rows: Tensor = stored[first : math.ceil(stop / row)]
    return rows.reshape(-1)[start - first * row : stop - first * row]


def write_shard(output: ArtifactWriter, step: int, rank: int, tensors: Mapping[str, Tensor]) -> Shard:
    """Publish one rank's tensors as its shard and return its size and digest."""
    name = f"rank-{rank:05d}.safetensors"
    facts: list[tuple[int, str]] = []

    def write(path: Path) -> None:
        save_file(dict(tensors), path)
        facts.append((path.stat().st_size, sha256_of(path)))

    output.publish(step_prefix(step) + name, write, replace=True)
    size, sha256 = facts[-1]
    return Shard(name, size, sha256, tuple(sorted(tensors)))


def write_marker(
    output: ArtifactWriter, step: int, shards: Sequence[Shard], *, world_size: int, state: Mapping[str, Any]
) -> None:
    """Publish the marker, which completes a checkpoint."""
    marker = {
        "format": _FORMAT,
        "step": step,
        "world_size": world_size,
        "state": dict(state),
        "shards": [asdict(shard) for shard in shards],
    }
    output.publish(step_prefix(step) + MARKER, lambda path: _write_json(path, marker), replace=True)


def read_marker(output: ArtifactWriter, step: int) -> Checkpoint:
    """Read a checkpoint's marker without checking its shards; DataError describes the damage."""
    try:
        marker = json.loads(output.fetch(step_prefix(step) + MARKER).read_text())
        shards = tuple(Shard(**{**shard, "tensors": tuple(shard["tensors"])}) for shard in marker["shards"])
        return Checkpoint(output, int(marker["step"]), int(marker["world_size"]), shards, marker["state"])
    except (OSError, MissingInputError, ValueError, KeyError, TypeError) as error:
        raise _damaged(step, f"{MARKER}: {type(error).__name__}: {error}") from error


def verify_shard(checkpoint: Checkpoint, shard: Shard) -> None:
    """Compare a shard with the marker's size, sha256 and tensor names; DataError names the difference."""
    try:
        path = checkpoint.path(shard)
        size = path.stat().st_size
        if size != shard.size:
            raise _damaged(checkpoint.step, f"{shard.name} has {size} bytes, not {shard.size}")
        if sha256_of(path) != shard.sha256:
            raise _damaged(checkpoint.step, f"{shard.name} does not match its sha256")
        with safe_open(path, framework="pt") as file:
            if sorted(file.keys()) != list(shard.tensors):
                raise _damaged(checkpoint.step, f"{shard.name} contains other tensors than {MARKER} lists")
    except (OSError, MissingInputError, SafetensorError) as error:
        raise _damaged(checkpoint.step, f"{shard.name}: {type(error).__name__}: {error}") from error


def published_steps(output: ArtifactWriter) -> tuple[list[int], list[int]]:
    """Return (steps with a marker, steps whose marker is missing), newest first."""
    complete: set[int] = set()
    seen: set[int] = set()
    for name in output.published(CHECKPOINTS_PREFIX + "step-"):
        directory, _, file = name.removeprefix(CHECKPOINTS_PREFIX).partition("/")
        step = directory.removeprefix("step-")
        if step.isdigit():
            seen.add(int(step))
            if file == MARKER:
                complete.add(int(step))
    return sorted(complete, reverse=True), sorted(seen - complete, reverse=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value))


def _damaged(step: int, what: str) -> DataError:
    return DataError(f"checkpoint {step_prefix(step).rstrip('/')} is damaged: {what}", code="CheckpointDamaged")
