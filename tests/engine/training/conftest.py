"""Fixtures of the training tests: a run on one process without DeepSpeed, in this interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import EXPERIMENT_HASH, NOON, make_tokenizer, save_tiny_model
from training_support import FAST, full_tensor, triples_frame

from wrpo_engine.artifacts.volume import VolumeWriter
from wrpo_engine.config import ArtifactRef, SftParams, TrainParams
from wrpo_engine.process.progress import Progress
from wrpo_engine.training.backends.single_process import SingleProcessBackend
from wrpo_engine.training.batch.batching import BatchPlan, RowCost
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.checkpoint.format import Checkpoint
from wrpo_engine.training.checkpoint.manager import CheckpointStore
from wrpo_engine.training.data.inputs import ChatEncoder
from wrpo_engine.training.data.tokenize import TextRow, tokenize_rows
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.loop import TrainingOutcome, TrainingRun, train
from wrpo_engine.training.models.model import LogpModel, load_causal_lm
from wrpo_engine.training.monitoring.metrics import CLOCK_FIELDS, METRICS_FILE, MetricsLog, read_rows
from wrpo_engine.training.objectives.divergence import RewardDivergence
from wrpo_engine.training.objectives.preference import preference_objective
from wrpo_engine.training.objectives.tasks import PreferenceTask, SftTask, Task
from wrpo_engine.training.reference.log_probs import ReferenceCache, ReferenceLogps, ReferencePass, compute_reference


@dataclass
class LocalRun:
    """A training run on the CPU in float64 or float32, restartable from its directory."""

    directory: Path
    model_dir: Path
    settings: dict[str, Any]
    dtype: torch.dtype = torch.float32
    micro_batch_tokens: int = 400
    checkpoint_every_steps: int = 2
    stop_after: int | None = None
    prefetch: int = 2
    layout: Layout = Layout.PADDED
    progress: Progress = field(default_factory=Progress)
    rows: list[TokenRow] = field(default_factory=list)
    calls: int = 0

    def params(self) -> SftParams | TrainParams:
        dumped = {"model": {"name": str(self.model_dir)}, **FAST, **self.settings}
        kind = SftParams if dumped.get("stage") == "sft" else TrainParams
        return kind.model_validate(dumped)

    def task(self) -> Task:
        params = self.params()
        if isinstance(params, SftParams):
            return SftTask(params)
        return PreferenceTask(params, preference_objective(params))

    def token_rows(self) -> list[TokenRow]:
        if not self.rows:
            count = self.task().responses_per_row
            frame = triples_frame()
            columns = ["source_chosen", "target_chosen", "rejected"][-count:] if count > 1 else ["source_chosen"]
            texts = [
                TextRow(row[0], row[1], tuple(row[2:])) for row in frame.select("prompt_id", "prompt", *columns).rows()
            ]
            self.rows = tokenize_rows(texts, ChatEncoder(make_tokenizer()), self.params()).rows
        return self.rows

    def backend(self) -> SingleProcessBackend:
        causal_lm = load_causal_lm(
            self.model_dir, precision="float32", gradient_checkpointing=False, trust_remote_code=False
        )
        return SingleProcessBackend(LogpModel(causal_lm.to(self.dtype), self.layout), self.params())

    def plan(self) -> BatchPlan:
        params = self.params()
        costs = [RowCost.of(row) for row in self.token_rows()]
        return BatchPlan(
            costs,
            params.global_batch_size,
            params.epochs,
            params.seed,
            1,
            self.micro_batch_tokens,
            layout=self.layout,
        )

    def reference(self, backend: SingleProcessBackend) -> ReferenceLogps | None:
        if not self.task().needs_reference:
            return None
        cache = ReferenceCache(self.output(), "reference/")
        return compute_reference(
            ReferencePass(backend, self.token_rows(), self.plan(), Group()), cache, steps_per_part=2
        )

    def output(self) -> VolumeWriter:
        ref = ArtifactRef(stage="train", hash=EXPERIMENT_HASH)
        return VolumeWriter(ref, self.directory, {}, {}, lambda: NOON)

    def run(self) -> TrainingOutcome:
        """Start, or continue from the last checkpoint."""
        checkpoints = CheckpointStore(self.output(), Group())
        checkpoint = checkpoints.latest()
        self.final = backend = self.backend()
        reference = self.reference(backend)
        if checkpoint is not None:
            backend.restore(checkpoint.step, checkpoint.read)
        self.calls = checkpoint.step if checkpoint else 0
        run = TrainingRun(
            task=self.task(),
            params=self.params(),
            rows=self.token_rows(),
            plan=self.plan(),
            backend=backend,
            group=Group(),
            reference=reference,
            checkpoints=checkpoints,
            checkpoint_every_steps=self.checkpoint_every_steps,
            log=MetricsLog(self.directory / METRICS_FILE, Group()),
            progress=self.progress,
            should_stop=self._should_stop,
            monotonic=lambda: 0.0,
            divergence=self.divergence(checkpoint),
            prefetch=self.prefetch,
        )
        return train(run, steps_done=self.calls)

    def divergence(self, checkpoint: Checkpoint | None) -> RewardDivergence | None:
        params = self.params()
        if not isinstance(params, TrainParams):
            return None
        watch = RewardDivergence(params)
        if checkpoint is not None:
            watch.restore(checkpoint.state["divergence"])
        return watch

    def _should_stop(self) -> bool:
        self.calls += 1
        return self.stop_after is not None and self.calls >= self.stop_after

    def weights(self) -> dict[str, torch.Tensor]:
        from wrpo_engine.training.backends.base import TensorKind

        return {name: full_tensor(self.final, name, TensorKind.WEIGHT) for name in self.final.parameter_names()}

    def metrics(self) -> list[dict[str, Any]]:
        """The deterministic part of every row."""
        rows = [row for row, _ in read_rows(self.directory / METRICS_FILE)]
        return [{name: value for name, value in row.items() if name not in CLOCK_FIELDS} for row in rows]


LocalRunFactory = Callable[..., LocalRun]


@pytest.fixture(scope="session")
def training_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("training-model"))


@pytest.fixture
def local_run(tmp_path: Path, training_model_dir: Path) -> LocalRunFactory:
    """`local_run("name", objective="DPO", ...)`; changes of the run itself go by `run={...}`."""

    def make(name: str = "run", *, run: dict[str, Any] | None = None, **settings: Any) -> LocalRun:
        has_beta = settings.get("stage") != "sft" and settings.get("objective") not in {"IPO", "WRPO-IPO"}
        merged = {"beta": 0.1, **settings} if has_beta else settings
        return LocalRun(tmp_path / name, training_model_dir, merged, **(run or {}))

    return make
