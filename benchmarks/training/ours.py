"""Our side: the engine's loop on its backend. Only this module here uses internals of the engine."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common.memory import PeakMemory
from benchmarks.common.process import each, worker_main
from benchmarks.training.workload import (
    ADAM_BETAS,
    ADAM_EPSILON,
    ALPHA_MAX,
    BETA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    Plan,
    clock_of,
)
from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef, Runtime, TrainParams
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.process.progress import Progress
from wrpo_engine.training.backends.base import Backend
from wrpo_engine.training.backends.single_process import SingleProcessBackend
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.checkpoint.manager import CheckpointStore
from wrpo_engine.training.data.planning import make_plan
from wrpo_engine.training.distributed.collectives import Group, open_group
from wrpo_engine.training.loop import TrainingRun, train
from wrpo_engine.training.models.model import load_config
from wrpo_engine.training.models.policy import load_policy
from wrpo_engine.training.monitoring.metrics import METRICS_FILE, MetricsLog, read_rows
from wrpo_engine.training.objectives.preference import preference_objective
from wrpo_engine.training.objectives.tasks import PreferenceTask
from wrpo_engine.training.reference.log_probs import ReferenceCache, ReferencePass, compute_reference

NEVER = 10**9
_REF = ArtifactRef(stage="train", hash="0" * 16)


class MemoryProbe:
    """Backend whose last two steps do not change weights: the first leaves its gradients for the measured second."""

    def __init__(self, backend: Backend, *, after_steps: int) -> None:
        self._backend = backend
        self._after_steps = after_steps
        self._steps = 0
        self._memory = PeakMemory()
        self.peak: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def optimizer_step(self, learning_rate: float) -> float:
        self._steps += 1
        if self._steps <= self._after_steps:
            return self._backend.optimizer_step(learning_rate)
        if self._steps == self._after_steps + 1:
            self._memory.start()
        else:
            self.peak = self._memory.stop()
        return 0.0


def make_params(plan: Plan, *, zero_stage: int, precision: str = "float32") -> TrainParams:
    pair = plan.case.num_responses == 2
    return TrainParams.model_validate(
        {
            "model": {"name": plan.model_dir},
            "objective": "DPO" if pair else "WRPO-DPO",
            **({} if pair else {"alpha": {"schedule": "Linear", "max": ALPHA_MAX}}),
            "beta": BETA,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0.0,
            "adam_beta1": ADAM_BETAS[0],
            "adam_beta2": ADAM_BETAS[1],
            "adam_epsilon": ADAM_EPSILON,
            "max_grad_norm": MAX_GRAD_NORM,
            "global_batch_size": plan.case.triples_per_step,
            "precision": precision,
            "zero_stage": zero_stage,
            "shuffle": False,
        }
    )


def make_backend(
    plan: Plan, params: TrainParams, runtime: Runtime, group: Group, layout: Layout, *, deepspeed: bool
) -> Backend:
    import torch

    model = load_policy(ResolvedModel(Path(plan.model_dir), plan.model_dir, None), params, layout)
    if deepspeed:
        from wrpo_engine.training.backends.deepspeed import DeepSpeedBackend

        return DeepSpeedBackend(model, params, runtime, group)
    return SingleProcessBackend(model.to("cuda" if torch.cuda.is_available() else "cpu"), params)


def figures_of(plan: Plan, directory: Path, probe: MemoryProbe, layout: Layout) -> dict[str, Any]:
    """Return times and losses of the steps that the engine has logged below `directory`, and the measured memory."""
    logged = [row for row, _ in read_rows(directory / METRICS_FILE)][: plan.num_optimizer_steps]
    return {
        "step_seconds": [row["step_seconds"] for row in logged[plan.warmup_steps :]],
        "losses": [row["loss"] for row in logged],
        "step_memory": probe.peak,
        "memory_source": PeakMemory().source,
        "layout": layout.value,
    }


def work(specification: dict[str, Any]) -> dict[str, Any]:
    monotonic = clock_of(specification)
    plan = Plan.from_json(specification["plan"])
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    runtime = Runtime(
        micro_batch_size=plan.case.triples_per_pass,
        layout=specification.get("layout", "auto"),
    )
    params = make_params(
        plan, zero_stage=specification.get("zero_stage", 1), precision=specification.get("precision", "float32")
    )
    rows = [TokenRow(str(index), row.prompt, row.responses) for index, row in enumerate(plan.rows())]
    with tempfile.TemporaryDirectory() as name, open_group(os.environ) as group:
        directory = Path(group.broadcast(name))
        config = load_config(Path(plan.model_dir), trust_remote_code=False)
        batches = make_plan(params, runtime, rows, group, config)
        deepspeed = world_size > 1 or specification.get("deepspeed", False)
        backend = make_backend(plan, params, runtime, group, batches.layout, deepspeed=deepspeed)
        probe = MemoryProbe(backend, after_steps=plan.num_optimizer_steps)
        output = VolumeStore(directory, lambda: datetime.now(UTC)).writer(_REF, config={}, inputs={})
        started = monotonic()
        reference = compute_reference(
            ReferencePass(backend, rows, batches, group), ReferenceCache(output, "reference/"), steps_per_part=NEVER
        )
        reference_seconds = monotonic() - started
        train(
            TrainingRun(
                task=PreferenceTask(params, preference_objective(params)),
                params=params,
                rows=rows,
                plan=batches,
                backend=probe if plan.measure_memory else backend,
                group=group,
                reference=reference,
                checkpoints=CheckpointStore(output, group),
                checkpoint_every_steps=NEVER,
                log=MetricsLog(directory / METRICS_FILE, group),
                progress=Progress(),
                should_stop=lambda: False,
                monotonic=monotonic,
            )
        )
        group.barrier()
        if not group.is_main:
            return {}
        figures = figures_of(plan, directory, probe, batches.layout)
    return {**figures, "reference_seconds_per_step": reference_seconds / plan.num_steps}


if __name__ == "__main__":
    worker_main(each(work))
