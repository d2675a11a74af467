"""Checkpoints of a training run: atomic, verified, independent of world size, ZeRO stage and offload.

A checkpoint is one safetensors shard per rank that wrote it, `checkpoints/step-NNNNNNNN/rank-RRRRR.safetensors`, and
`checkpoint.json`, published last, which lists the shards with size and sha256. Every trainable parameter's fp32 weight
and its two Adam moments are stored whole, each by one rank, so any number of ranks and any stage can continue from it,
exactly: nothing is averaged or re-rounded. The data order, the random seeds, the learning rate and alpha are functions
of the step and need no state.

Everything goes through the artifact's writer, so ranks need no directory in common.
"""

from __future__ import annotations

import json
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
    return f"{CHECKPOINTS_PREFIX}step-{step:08d}/"


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's file."""

    name: str
    """Below the checkpoint's prefix."""
    size: int
    sha256: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, verified when it was found."""

    output: ArtifactWriter
    step: int
    """Optimizer steps completed."""
    world_size: int
    """Of the run that wrote it."""
    shards: tuple[Shard, ...]
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the loop keeps beside weights and optimizer, as JSON."""
    _paths: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)
    """Shards that this process has: asking the store again would cost a request for every tensor."""

    def read(self, name: str, kind: TensorKind) -> Tensor:
        """Return one whole fp32 tensor."""
        key = f"{kind.value}/{name}"
        shard = next((shard for shard in self.shards if key in shard.tensors), None)
        if shard is None:
            raise DataError(
                f"checkpoint {step_prefix(self.step)} holds no {kind.value} of parameter {name}",
                code="CheckpointIncompatible",
                hint=f"Remove {CHECKPOINTS_PREFIX} of {self.output.ref.stage}/{self.output.ref.hash} "
                "to train from the beginning.",
            )
        with safe_open(self.path(shard), framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor

    def path(self, shard: Shard) -> Path:
        """Return the local path of a shard."""
        if shard.name not in self._paths:
            self._paths[shard.name] = self.output.fetch(step_prefix(self.step) + shard.name)
        return self._paths[shard.name]


def write_shard(output: ArtifactWriter, step: int, rank: int, tensors: Mapping[str, Tensor]) -> Shard:
    """Publish one rank's tensors."""
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
    """Complete a checkpoint: from now on it exists."""
    marker = {
        "format": _FORMAT,
        "step": step,
        "world_size": world_size,
        "state": dict(state),
        "shards": [asdict(shard) for shard in shards],
    }
    output.publish(step_prefix(step) + MARKER, lambda path: _write_json(path, marker), replace=True)


def read_marker(output: ArtifactWriter, step: int) -> Checkpoint:
    """Read what a checkpoint consists of, without looking at its shards; DataError says what is wrong with it."""
    try:
        marker = json.loads(output.fetch(step_prefix(step) + MARKER).read_text())
        shards = tuple(Shard(**{**shard, "tensors": tuple(shard["tensors"])}) for shard in marker["shards"])
        return Checkpoint(output, int(marker["step"]), int(marker["world_size"]), shards, marker["state"])
    except (OSError, MissingInputError, ValueError, KeyError, TypeError) as error:
        raise _damaged(step, f"{MARKER}: {type(error).__name__}: {error}") from error


def verify_shard(checkpoint: Checkpoint, shard: Shard) -> None:
    """Compare a shard with what the marker says of it; DataError names it."""
    try:
        path = checkpoint.path(shard)
        size = path.stat().st_size
        if size != shard.size:
            raise _damaged(checkpoint.step, f"{shard.name} has {size} bytes, not {shard.size}")
        if sha256_of(path) != shard.sha256:
            raise _damaged(checkpoint.step, f"{shard.name} does not match its sha256")
        with safe_open(path, framework="pt") as file:
            if sorted(file.keys()) != list(shard.tensors):
                raise _damaged(checkpoint.step, f"{shard.name} holds other tensors than {MARKER} says")
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
