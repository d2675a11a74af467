"""SFT with the engine's loop on plain PyTorch, with or without fused distributions."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.process import each, worker_main
from benchmarks.training.ours import NEVER, MemoryProbe, figures_of
from benchmarks.training.workload import LEARNING_RATE, Plan, clock_of
from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef, Runtime, SftParams
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.process.progress import Progress
from wrpo_engine.training.backends.single_process import SingleProcessBackend
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.batch.soft import FusedRow
from wrpo_engine.training.checkpoint.manager import CheckpointStore
from wrpo_engine.training.data.planning import make_plan
from wrpo_engine.training.distributed.collectives import open_group
from wrpo_engine.training.loop import TrainingRun, train
from wrpo_engine.training.models.model import load_config
from wrpo_engine.training.models.policy import load_policy
from wrpo_engine.training.monitoring.metrics import METRICS_FILE, MetricsLog
from wrpo_engine.training.objectives.tasks import SftTask

TOP_K = 10
FUSION_WEIGHT = 0.0
"""Both sides then have the same losses, which the comparison checks; the cost is that of any weight."""


def fused(count: int, vocabulary: int) -> FusedRow:
    """Return random distributions over `TOP_K` ids of `count` tokens."""
    generator = np.random.default_rng(count)
    ids = np.argsort(generator.random((count, min(vocabulary, 4096))), axis=1)[:, :TOP_K].astype(np.int32)
    return FusedRow(ids, generator.dirichlet(np.ones(TOP_K), size=count).astype(np.float16), FUSION_WEIGHT)


def work(specification: dict[str, Any]) -> dict[str, Any]:
    monotonic = clock_of(specification)
    plan = Plan.from_json(specification["plan"])
    is_fused = specification["fused"]
    params = SftParams.model_validate(
        {
            "model": {"name": plan.model_dir},
            "learning_rate": LEARNING_RATE,
            "global_batch_size": plan.case.triples_per_step,
            "precision": "float32",
            "shuffle": False,
            **({"fusion": {"targets": "align/all", "weight": FUSION_WEIGHT}} if is_fused else {}),
        }
    )
    vocabulary = plan.case.model.vocabulary
    rows = [
        TokenRow(
            str(index),
            row.prompt,
            row.responses[:1],
            fused=fused(len(row.responses[0]), vocabulary) if is_fused else None,
        )
        for index, row in enumerate(plan.rows())
    ]
    base = ResolvedModel(Path(plan.model_dir), plan.model_dir, None)
    with tempfile.TemporaryDirectory() as name, open_group(os.environ) as group:
        directory = Path(name)
        config = load_config(base.path, trust_remote_code=False)
        batches = make_plan(params, Runtime(micro_batch_size=plan.case.triples_per_pass), rows, group, config)
        backend = SingleProcessBackend(load_policy(base, params, batches.layout), params)
        probe = MemoryProbe(backend, after_steps=plan.num_optimizer_steps)
        output = VolumeStore(directory, lambda: datetime.now(UTC)).writer(
            ArtifactRef(stage="sft", hash="0" * 16), config={}, inputs={}
        )
        train(
            TrainingRun(
                task=SftTask(params),
                params=params,
                rows=rows,
                plan=batches,
                backend=probe if plan.measure_memory else backend,
                group=group,
                reference=None,
                checkpoints=CheckpointStore(output, group),
                checkpoint_every_steps=NEVER,
                log=MetricsLog(directory / METRICS_FILE, group),
                progress=Progress(),
                should_stop=lambda: False,
                monotonic=monotonic,
            )
        )
        return figures_of(plan, directory, probe, batches.layout)


if __name__ == "__main__":
    worker_main(each(work))
