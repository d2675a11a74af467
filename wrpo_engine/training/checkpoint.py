"""Checkpoints of a training run: atomic, verified, independent of world size and ZeRO stage.

A checkpoint is a directory `step-NNNNNNNN` with one safetensors shard per rank that wrote it and `checkpoint.json`,
which lists the shards with size and sha256. Every parameter's fp32 weight and its two Adam moments are stored whole,
each by one rank, so any number of ranks and any stage can continue from it, exactly: nothing is averaged or re-rounded.
The data order, the learning rate and alpha are functions of the step and need no state.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wrpo_engine.artifacts.manifest import sha256_of
from wrpo_engine.errors import DataError
from wrpo_engine.training.backend import Backend, TensorKind
from wrpo_engine.training.collectives import Group

_MARKER = "checkpoint.json"
_FORMAT = 1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint, verified when it was found."""

    directory: Path
    step: int
    """Optimizer steps completed."""
    world_size: int
    """Of the run that wrote it."""
    shard_of: dict[str, str]

    def read(self, name: str, kind: TensorKind) -> Tensor:
        """Return one whole fp32 tensor."""
        key = f"{kind.value}/{name}"
        shard = self.shard_of.get(key)
        if shard is None:
            raise DataError(
                f"checkpoint {self.directory} holds no {kind.value} of parameter {name}",
                code="CheckpointIncompatible",
                hint=f"Remove {self.directory.parent} to train from the beginning.",
            )
        with safe_open(self.directory / shard, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints of one run, in a directory that all ranks share."""

    directory: Path
    group: Group
    keep_last: int = 2

    def save(self, step: int, backend: Backend) -> None:
        """Write a checkpoint; called on all ranks together. It appears at once, when all of it is on disk."""
        final = self.directory / f"step-{step:08d}"
        temporary = self.directory / f".tmp-{final.name}"

        def prepare() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

        self.group.on_main(prepare)
        shard = self._write_shard(temporary, backend)
        shards = self.group.gather(shard)

        def publish() -> None:
            marker = {"format": _FORMAT, "step": step, "world_size": self.group.world_size, "shards": shards}
            (temporary / _MARKER).write_text(json.dumps(marker))
            _sync(temporary / _MARKER)
            _sync(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.replace(final)
            _sync(self.directory)
            for old in self._directories()[self.keep_last :]:
                shutil.rmtree(old, ignore_errors=True)

        self.group.on_main(publish)

    def _write_shard(self, directory: Path, backend: Backend) -> dict[str, Any]:
        own: dict[str, Tensor] = {}
        items = [(name, kind) for name in backend.parameter_names() for kind in TensorKind]
        for index, (name, kind) in enumerate(items):
            full = backend.full_tensor(name, kind)
            if index % self.group.world_size == self.group.rank:
                own[f"{kind.value}/{name}"] = full.contiguous()
        path = directory / f"rank-{self.group.rank:05d}.safetensors"
        save_file(own, path)
        _sync(path)
        return {"name": path.name, "size": path.stat().st_size, "sha256": sha256_of(path), "tensors": sorted(own)}

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, on all ranks the same; say which ones are not."""
        return self.group.on_main(self._latest)

    def _latest(self) -> Checkpoint | None:
        for directory in self._directories():
            try:
                return read_checkpoint(directory)
            except DataError as error:
                _LOG.warning("%s; using the one before it", error)
        return None

    def remove(self) -> None:
        """Forget all checkpoints; the trained model has been exported."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _directories(self) -> list[Path]:
        """Newest first."""
        return sorted(self.directory.glob("step-*"), reverse=True)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Open and verify a checkpoint; DataError says what is wrong with it."""
    try:
        marker = json.loads((directory / _MARKER).read_text())
        shard_of: dict[str, str] = {}
        for shard in marker["shards"]:
            path = directory / shard["name"]
            size = path.stat().st_size
            if size != shard["size"]:
                raise DataError(
                    f"checkpoint {directory} is damaged: {shard['name']} has {size} bytes, not {shard['size']}"
                )
            if sha256_of(path) != shard["sha256"]:
                raise DataError(f"checkpoint {directory} is damaged: {shard['name']} does not match its sha256")
            shard_of.update(dict.fromkeys(shard["tensors"], shard["name"]))
        return Checkpoint(directory, int(marker["step"]), int(marker["world_size"]), shard_of)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"checkpoint {directory} is damaged: {type(error).__name__}: {error}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
