"""Real training runs on tiny models: configs, rows and processes as the operator starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from engine_support import EXPERIMENT_HASH, NOON, save_tiny_model, stage_config
from forked_ranks import ForkedRank
from support.patience import LONG_S
from support.stopping import SLICE_S, stop_when
from torch import Tensor

from wrpo_devcluster.ports import free_ports
from wrpo_engine.artifacts import VolumeStore
from wrpo_engine.config import ArtifactRef
from wrpo_engine.training.backends.base import Backend, Item, TensorKind
from wrpo_engine.training.backends.single_process import SingleProcessBackend
from wrpo_engine.training.models.policy import load_frozen, load_policy
from wrpo_engine.training.monitoring.metrics import CLOCK_FIELDS

ROOT = Path(__file__).resolve().parents[3]
NUM_ROWS = 11
"""Not a multiple of any batch size below: the last step of an epoch is smaller."""

FAST: dict[str, Any] = {
    "learning_rate": 1e-3,
    "global_batch_size": 4,
    "epochs": 2,
    "max_length": 96,
    "max_prompt_length": 64,
    "precision": "float32",
}
"""Two epochs of three steps, the last of three rows."""
FAST_ON_IDS: dict[str, Any] = {
    name: value for name, value in FAST.items() if name not in {"max_length", "max_prompt_length"}
}
"""For triples of token ids, which no length cuts."""


def triples_frame(num_rows: int = NUM_ROWS, *, has_source: bool = True) -> pl.DataFrame:
    """Rows of mixed lengths, so that padding, balancing and truncation all happen."""
    indices = range(num_rows)
    return pl.DataFrame(
        {
            "prompt_id": [f"prompt-{index:02d}" for index in indices],
            "prompt": ["why " * (1 + index % 4) for index in indices],
            "source_chosen": ["because " * (1 + index % 5) if has_source else None for index in indices],
            "target_chosen": ["so it is " * (1 + (index * 3) % 4) for index in indices],
            "rejected": ["no" * (1 + (index * 7) % 6) for index in indices],
        },
        schema_overrides={"source_chosen": pl.String},
    )


def sft_frame(num_rows: int = NUM_ROWS) -> pl.DataFrame:
    return triples_frame(num_rows).select("prompt_id", "prompt", response="source_chosen")


def plain_backend(attempt: Any, base: Any, layout: Any, *, needs_frozen: bool) -> SingleProcessBackend:
    """The backend without DeepSpeed, in place of `session.make_backend`."""
    params = attempt.params
    frozen = load_frozen(base, params, layout) if needs_frozen else None
    return SingleProcessBackend(load_policy(base, params, layout), params, frozen)


def full_tensor(backend: Backend, name: str, kind: TensorKind, *, world_size: int = 1) -> Tensor:
    """Return a whole tensor; all ranks call this together."""
    item = Item(name, kind)
    tensor = backend.host_tensor(item)
    backend.gather([[item]] * world_size, {item: tensor})
    return tensor


@dataclass(frozen=True)
class Experiment:
    """A storage volume with a model and the inputs of both training stages."""

    root: Path

    @property
    def volume(self) -> Path:
        return self.root / "storage"

    def output(self, name: str) -> Path:
        return self.volume / name / EXPERIMENT_HASH

    def config(self, params: Mapping[str, Any], runtime: Mapping[str, Any] | None = None) -> Path:
        role = "triples" if params["stage"] == "train" else "sft-rows"
        stage = "curate-triples" if params["stage"] == "train" else "curate-sft"
        fast = FAST_ON_IDS if "tokenized_triples" in params else FAST
        config = stage_config(
            {"model": {"name": str(self.root / "model")}, **fast, **params},
            {role: ArtifactRef(stage=stage, hash=EXPERIMENT_HASH)},
            runtime={
                **({} if "micro_batch_size" in (runtime or {}) else {"micro_batch_tokens": 400}),
                "checkpoint_every_steps": 2,
                "collective_timeout_seconds": 60,
                **(runtime or {}),
            },
        )
        path = self.root / f"{params['stage']}.json"
        path.write_text(config.model_dump_json())
        return path

    def termination_message(self, rank: int) -> Path:
        """Of a bare rank or of a node's launcher."""
        return self.root / f"termination-{rank}.json"

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output(stage) / "metrics.jsonl").read_text().splitlines()]

    def deterministic_metrics(self, stage: str) -> list[dict[str, Any]]:
        """Without what differs from run to run."""
        return [{key: row[key] for key in row if key not in CLOCK_FIELDS} for row in self.metrics(stage)]

    def weights(self, stage: str) -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self.output(stage) / "model" / "model.safetensors")


def make_experiment(root: Path, *, num_rows: int = NUM_ROWS) -> Experiment:
    save_tiny_model(root / "model")
    store = VolumeStore(root / "storage", lambda: NOON)
    for stage, name, frame in (
        ("curate-sft", "rows.parquet", sft_frame(num_rows)),
        ("curate-triples", "triples.parquet", triples_frame(num_rows)),
    ):
        writer = store.writer(ArtifactRef(stage=stage, hash=EXPERIMENT_HASH), config={}, inputs={})
        writer.publish(name, frame.write_parquet)
        writer.commit(files=[name], rows={name: frame.height})
    return Experiment(root)


def free_port() -> int:
    return free_ports(1)[0]


def base_environ(experiment: Experiment) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WRPO_VOLUME_ROOT": str(experiment.volume),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


@dataclass
class Gang:
    """The processes of one training run: one torchrun for every node, or bare ranks."""

    processes: list[subprocess.Popen[str]] | list[ForkedRank]
    output: list[str]
    log: Path | None = None
    """Where forked ranks write."""

    def wait(self, timeout_s: float = LONG_S) -> list[int]:
        deadline = time.monotonic() + timeout_s
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def text(self) -> str:
        return "".join(self.output) + (self.log.read_text() if self.log is not None and self.log.exists() else "")

    def send(self, number: signal.Signals, ranks: Sequence[int] = (0, 1)) -> None:
        for rank in ranks:
            if rank < len(self.processes):
                self.processes[rank].send_signal(number)


def freeze_when(gang: Gang, what: str, condition: Callable[[], object], *, slice_s: float = SLICE_S) -> None:
    """Stop all ranks (SIGSTOP) once the condition holds, in the middle of their work."""

    def holds() -> bool:
        if condition():
            return True
        assert all(rank.poll() is None for rank in gang.processes), gang.text()
        return False

    stop_when([rank.pid for rank in gang.processes], what, holds, slice_s=slice_s)


def _start(arguments: list[str], environ: Mapping[str, str], output: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        arguments, env=dict(environ), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    def drain() -> None:
        assert process.stdout is not None
        with process.stdout:
            output.extend(process.stdout)

    threading.Thread(target=drain, daemon=True).start()
    return process


def start_ranks(
    experiment: Experiment,
    config: Path,
    *,
    world_size: int,
    faults: Mapping[int, str] | None = None,
    pods: Sequence[Mapping[str, str]] = (),
) -> Gang:
    """Start bare ranks with torchrun's environment, so that a signal reaches the rank itself.

    `faults` maps a rank to a function of `rank_faults` that is called in it first; `pods` has each rank's variables.
    """
    port = free_port()
    stage = json.loads(config.read_text())["params"]["stage"]
    log = experiment.root / f"ranks-{time.monotonic_ns()}.log"
    ranks = []
    for rank in range(world_size):
        environ = base_environ(experiment) | {
            "WRPO_TERMINATION_MESSAGE_PATH": str(experiment.termination_message(rank)),
        }
        if world_size > 1:
            environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        environ |= dict(pods[rank]) if pods else {}
        ranks.append(ForkedRank.start([stage, "--config", str(config)], environ, log, fault=(faults or {}).get(rank)))
    return Gang(ranks, [], log)


def start_nodes(experiment: Experiment, config: Path, *, nodes: int = 2) -> Gang:
    """Start `nodes` launchers of one process each on loopback, with the PET_* environment of a PyTorchJob."""
    port, output = free_port(), list[str]()
    stage = json.loads(config.read_text())["params"]["stage"]
    processes = []
    for node in range(nodes):
        environ = base_environ(experiment) | {
            "PET_NNODES": str(nodes),
            "PET_NODE_RANK": str(node),
            "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "WRPO_TERMINATION_MESSAGE_PATH": str(experiment.termination_message(node)),
        }
        arguments = [sys.executable, "-m", "wrpo_engine.training.launch", stage, "--config", str(config)]
        processes.append(_start(arguments, environ, output))
    return Gang(processes, output)


def run_ranks(experiment: Experiment, config: Path, *, world_size: int = 1) -> Gang:
    """Run to the end and require success."""
    gang = start_ranks(experiment, config, world_size=world_size)
    codes = gang.wait()
    assert codes == [0] * world_size, gang.text()
    return gang
