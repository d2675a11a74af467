"""Part: the engine's checkpoints of weights and both moments in fp32: how long training is held, saving, restoring."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.gpu.rows import Figures
from benchmarks.gpu.work import Work, batches_of, loss_of, model_of, part_main, rounded, seconds_of
from benchmarks.training.workload import ModelSize
from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef, Runtime, TrainParams
from wrpo_engine.training.backends.base import Backend, Item, TensorKind
from wrpo_engine.training.backends.deepspeed import DeepSpeedBackend
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.checkpoint.manager import CheckpointStore
from wrpo_engine.training.distributed.collectives import Group, open_group
from wrpo_engine.training.models.model import LogpModel

SIZE = ModelSize(2, 4096, 14336, 32, 8, 32000)
"""567 million parameters: a checkpoint of 6.8 GB."""
_GB = 1e9


def act(work: Work) -> None:
    with open_group({}) as group:
        for stage in (1, 3):
            work.rows.measure(f"ZeRO {stage}, one process", partial(measure, work, stage, group))


def measure(work: Work, stage: int, group: Group) -> Figures:
    """Measure one stage after a step of training, because there are no moments before."""
    with (
        tempfile.TemporaryDirectory(prefix="wrpo-bench-checkpoint-") as name,
        backend_of(work, stage, group) as backend,
    ):
        rows = work.micro_batches(1, work.pick(SIZE, None))
        batch = batches_of(work, rows, Layout.SHARED_PREFIX)[0]
        backend.backward(loss_of(backend.sequence_logps(batch)), is_last=True)
        backend.optimizer_step(1e-6)
        ref = ArtifactRef(stage="train", hash="0" * 16)
        output = VolumeStore(Path(name), lambda: datetime.now(UTC)).writer(ref, config={}, inputs={})
        store = CheckpointStore(output, group)
        held = seconds_of(lambda: store.save(1, backend))
        written = seconds_of(store.finish)
        checkpoint = store.latest()
        if checkpoint is None:
            raise RuntimeError("the checkpoint that was saved is not found")
        saved = sum(shard.size for shard in checkpoint.shards)
        item = Item(backend.parameter_names()[0], TensorKind.EXP_AVG)
        before = whole(backend, item)
        restored = seconds_of(lambda: backend.restore(1, checkpoint.read))
        if not before.equal(whole(backend, item)):
            raise RuntimeError(f"{item.name} has other moments after it was restored")
    return rounded(
        {
            "gib": saved / 2**30,
            "held_s_per_gb": held / saved * _GB,
            "saved_s_per_gb": (held + written) / saved * _GB,
            "restored_s_per_gb": restored / saved * _GB,
        }
    )


def whole(backend: Backend, item: Item) -> Tensor:
    """Return a copy of a tensor of the only rank."""
    host = {item: backend.host_tensor(item)}
    backend.gather([[item]], host)
    return host[item]


@contextmanager
def backend_of(work: Work, stage: int, group: Group) -> Iterator[Backend]:
    settings: dict[str, Any] = {
        "model": {"name": "benchmark"},
        "objective": "DPO",
        "precision": "bfloat16" if work.device.type == "cuda" else "float32",
        "zero_stage": stage,
        "learning_rate": 1e-6,
    }
    model = LogpModel(model_of(work, work.pick(SIZE, None)), Layout.SHARED_PREFIX)
    yield DeepSpeedBackend(model, TrainParams.model_validate(settings), Runtime(), group)


if __name__ == "__main__":
    part_main(act)
