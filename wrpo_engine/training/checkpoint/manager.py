"""Checkpoint manager: asynchronous writing, completion, retention and lookup.

Writing has three phases. At a step boundary every rank copies its share to host memory; training waits for nothing
else. A thread of each rank hashes, writes and uploads it. At a later boundary, when every rank's thread has finished,
rank 0 publishes the marker and removes old checkpoints. At most one checkpoint is in progress. An error in a thread is
raised at the next boundary, on all ranks.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from wrpo_engine.artifacts import ArtifactWriter
from wrpo_engine.errors import DataError, TemporaryError
from wrpo_engine.training.backends.base import Backend, Item, TensorKind
from wrpo_engine.training.checkpoint.format import (
    CHECKPOINTS_PREFIX,
    Checkpoint,
    Shard,
    published_steps,
    read_marker,
    step_prefix,
    verify_shard,
    write_marker,
    write_shard,
)
from wrpo_engine.training.distributed.background import Background
from wrpo_engine.training.distributed.collectives import Group

_BEST = CHECKPOINTS_PREFIX + "best.json"
_LOG = logging.getLogger("wrpo_engine")


@dataclass
class _Pending:
    """A checkpoint whose shards are being written."""

    step: int
    state: Mapping[str, Any]
    write: Background[Shard]
    is_best: bool = False


@dataclass
class CheckpointStore:
    """The checkpoints of one run. All ranks call every method together."""

    output: ArtifactWriter
    group: Group
    keep_last: int = 2
    """Number of most recent checkpoints to keep, in addition to the best one."""
    _pending: _Pending | None = field(default=None, init=False)
    _host: dict[Item, Tensor] = field(default_factory=dict, init=False)
    """This rank's share of the last checkpoint."""

    def save(self, step: int, backend: Backend, state: Mapping[str, Any] | None = None) -> None:
        """Copy the state after `step` and start to write it; an earlier checkpoint in progress is finished first.

        `state` is stored with it as JSON.
        """
        if self._pending is not None and self._pending.step == step:
            return
        self.finish()
        tensors = self._own_tensors(backend)
        output, rank = self.output, self.group.rank
        write = Background(lambda: write_shard(output, step, rank, tensors), f"checkpoint-{step}")
        self._pending = _Pending(step, dict(state or {}), write)

    def _own_tensors(self, backend: Backend) -> dict[str, Tensor]:
        """Copy this rank's share to the host, into the memory of the checkpoint before, which has been written."""
        items = [Item(name, kind) for name in backend.parameter_names() for kind in TensorKind]
        shares = [items[rank :: self.group.world_size] for rank in range(self.group.world_size)]
        own = shares[self.group.rank]
        if list(self._host) != own:
            self._host = {item: backend.host_tensor(item) for item in own}
        backend.gather(shares, self._host)
        return {f"{kind.value}/{name}": tensor for (name, kind), tensor in self._host.items()}

    def poll(self) -> None:
        """Complete the checkpoint in progress if every rank has written its shard; called at every step boundary.

        Raise the error of this rank's thread, or TemporaryError for another rank's.
        """
        pending = self._pending
        if pending is None:
            return
        # One rank's error is raised before all have finished, because the checkpoint is lost anyway.
        done = pending.write.done
        error = pending.write.error if done else None
        reports = self.group.gather((done, None if error is None else f"{type(error).__name__}: {error}"))
        failures = [(rank, text) for rank, (_, text) in enumerate(reports) if text is not None]
        if failures:
            self._pending = None
            if error is not None:
                raise error
            rank, text = failures[0]
            raise TemporaryError(
                f"rank {rank} could not write its shard of the checkpoint after step {pending.step}: {text}",
                code="CheckpointNotWritten",
            )
        if not all(done for done, _ in reports):
            return
        self._pending = None
        shards = self.group.gather(pending.write.value)
        self.group.on_main(lambda: self._complete(pending, [shard for shard in shards if shard is not None]))

    def finish(self) -> None:
        """Wait for the checkpoint in progress, if there is one, and complete it."""
        if self._pending is None:
            return
        started = time.monotonic()
        self._pending.write.wait()
        self.group.barrier()
        self.poll()
        waited = time.monotonic() - started
        if waited > 1 and self.group.is_main:
            _LOG.info("waited %.0f s for the checkpoint to be written", waited)

    def close(self) -> None:
        """Complete the checkpoint in progress and free the host's copy."""
        self.finish()
        self._host = {}

    def _complete(self, pending: _Pending, shards: list[Shard]) -> None:
        write_marker(self.output, pending.step, shards, world_size=self.group.world_size, state=pending.state)
        if pending.is_best:
            self._write_best(pending.step)
        self._remove_old(pending.step)

    def _remove_old(self, newest: int) -> None:
        """Keep the last ones and the best. Remove later ones too: the run has resumed from an earlier step."""
        complete, incomplete = published_steps(self.output)
        kept: set[int | None] = {self._best_step()}
        kept.update([step for step in complete if step <= newest][: self.keep_last])
        for step in (*complete, *incomplete):
            if step not in kept:
                self.output.discard(step_prefix(step))

    def mark_best(self, step: int) -> None:
        """Keep the checkpoint of this step, which was saved before, until another one is the best.

        Raise ValueError if there is no checkpoint of this step.
        """
        if self._pending is not None and self._pending.step == step:
            self._pending.is_best = True
            return

        def mark() -> None:
            if step not in published_steps(self.output)[0]:
                raise ValueError(f"there is no checkpoint of step {step} to mark as the best")
            self._write_best(step)

        self.group.on_main(mark)

    def _write_best(self, step: int) -> None:
        def write(path: Path) -> None:
            path.write_text(json.dumps({"step": step}))

        self.output.publish(_BEST, write, replace=True)

    def _best_step(self) -> int | None:
        if _BEST not in self.output.published(_BEST):
            return None
        try:
            return int(json.loads(self.output.fetch(_BEST).read_text())["step"])
        except (ValueError, KeyError, TypeError):
            _LOG.warning("%s is damaged; no checkpoint is used as the best one", _BEST)
            return None

    def latest(self) -> Checkpoint | None:
        """Return the newest undamaged checkpoint, the same on all ranks, or None; log the damaged ones."""
        complete, incomplete = self.group.on_main(lambda: published_steps(self.output))
        for step in incomplete:
            if step > max(complete, default=-1) and self.group.is_main:
                _LOG.warning(
                    "checkpoint %s is incomplete because the run ended while it was written; using the previous one",
                    step_prefix(step).rstrip("/"),
                )
        for step in complete:
            if (checkpoint := self._open(step)) is not None:
                return checkpoint
        return None

    def best(self) -> Checkpoint | None:
        """Return the checkpoint that was last marked as the best, or None if there is none or it is damaged."""
        step = self.group.on_main(self._best_step)
        return None if step is None else self._open(step)

    def _open(self, step: int) -> Checkpoint | None:
        """Verify a checkpoint; the ranks of each node divide its shards among themselves."""
        problems: list[str] = []
        checkpoint: Checkpoint | None = None
        try:
            checkpoint = read_marker(self.output, step)
            for shard in checkpoint.shards[self.group.local_rank :: self.group.local_world_size]:
                verify_shard(checkpoint, shard)
        except DataError as error:
            problems.append(str(error))
        everyones = [problem for found in self.group.gather(problems) for problem in found]
        if not everyones:
            return checkpoint
        if self.group.is_main:
            _LOG.warning("%s; using the previous one", everyones[0])
        return None

    def remove(self) -> None:
        """Remove all checkpoints after the trained model has been exported."""
        self.finish()
        self.group.on_main(lambda: self.output.discard(CHECKPOINTS_PREFIX))
