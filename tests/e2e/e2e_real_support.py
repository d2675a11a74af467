"""A whole experiment for the real engine: tiny models of random weights, prompts, and a look at what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from e2e_support import NAMESPACE, SYSTEM, JsonObject, Kube
from engine.engine_support import save_tiny_model, save_tiny_reward
from support.patience import wait_until
from support.stopping import stop_when

from wrpo_devcluster import lifecycle
from wrpo_devcluster.controllers.volumes import claim_directory
from wrpo_devcluster.kubelet.records import MARKER
from wrpo_engine.training.monitoring.metrics import CLOCK_FIELDS
from wrpo_operator.cli.install import install_operator
from wrpo_operator.cli.local import WARM

SOURCES = ("a", "b")
PROMPTS = 24
HELD_OUT = 4
LOOK_S = 0.05
"""Seconds between looks for a process; much less than what any stage takes."""
STAGES = (
    "prepare",
    *(f"{kind}/{model}" for kind in ("sample", "score") for model in (*SOURCES, "target")),
    *("curate-sft", "sft", "curate-triples", "train", "evaluate", "report"),
    *(f"answer/{model}--held-out" for model in ("target", "sft", "trained")),
    *(f"grade/{model}--held-out--main" for model in ("target", "sft", "trained")),
)
_CLOCKED = frozenset({"elapsed_seconds", *CLOCK_FIELDS})
"""Metrics that a clock or the machine decides."""


@contextlib.contextmanager
def real_cluster(state_dir: Path, claims: Sequence[str]) -> Iterator[Kube]:
    """A cluster in which stages run as the chart ships them, with claims that `claim_path` finds.

    Starts are warm, as those of `wrpo dev up`: most of these stages' processor time is their imports. Starts as on a
    real cluster are those of test_e2e_s3.py, and of gangs' ranks everywhere.
    """
    # A Job waits ten seconds before it replaces a failed pod; a tenth of that is enough here.
    config = replace(lifecycle.default_config(state_dir), backoff_scale=0.1, warm=WARM)
    cluster = Kube(lifecycle.up(state_dir, config=config).kubeconfig, state_dir)
    try:
        install_operator(cluster.kubeconfig, namespace=SYSTEM, values={"auditSeconds": 15})
        cluster.run("kubectl", "create", "namespace", NAMESPACE)
        for claim in claims:
            spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
            kind = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
            cluster.apply({**kind, "metadata": {"name": claim}, "spec": spec})
        yield cluster
    finally:
        lifecycle.reset(state_dir)


def fill_claim(directory: Path) -> None:
    """Put the models and the prompts where storage:// finds them. Every claim gets the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("target", *SOURCES)):
        save_tiny_model(directory / "models" / name, seed=seed)
    save_tiny_reward(directory / "models" / "reward")
    lines = [json.dumps({"prompt": f"What is {number} plus {number * 7 % 11}?"}) for number in range(PROMPTS)]
    (directory / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def real_experiment(name: str, claim: str, **spec: Any) -> JsonObject:
    """Return an experiment with every stage, two sources and gangs of two pods."""
    small = {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"cpu": "1", "nvidia.com/gpu": 0}}
    whole: JsonObject = {
        "target": {"model": "storage://models/target"},
        "sources": [{"name": source, "model": f"storage://models/{source}"} for source in SOURCES],
        "prompts": {"dataset": "storage://prompts.jsonl", "evaluation": {"prompts": HELD_OUT}},
        "sampling": {
            "backend": "Transformers",
            "samplesPerPrompt": 3,
            "maxTokens": 8,
            "dtype": "float32",
            "promptsPerPart": 1,
        },
        "reward": {"model": "storage://models/reward", "dtype": "float32"},
        "sft": {"learningRate": 1e-3, "globalBatchSize": 2, "maxLength": 128, "maxPromptLength": 96},
        "training": {
            "alpha": {"schedule": "Linear", "max": 0.5},
            "beta": 0.1,
            "learningRate": 1e-3,
            "epochs": 2,
            "globalBatchSize": 2,
            "maxLength": 128,
            "maxPromptLength": 96,
            "precision": "float32",
            "zeroStage": 1,
            "nodes": 2,
            "gpusPerNode": 0,
            "checkpointEverySteps": 2,
        },
        "scheduling": {"gang": "BestEffort"},
        "evaluation": {"maxTokens": 8},
        "storage": {"volume": {"claimName": claim}},
        "resources": dict.fromkeys(
            ("prepare", "sample", "score", "curate", "sft", "train", "evaluate", "judge", "report"), small
        ),
        "retries": {"limit": 3, "backoffSeconds": 1},
    }
    return {
        "apiVersion": "wrpo.ai/v1alpha1",
        "kind": "WRPOExperiment",
        "metadata": {"name": name},
        "spec": {**whole, **spec},
    }


@dataclass(frozen=True)
class Artifacts:
    """The artifacts of one experiment on its claim."""

    root: Path
    address: dict[str, str]
    """Stage -> stage/hash, from the experiment's status."""

    @classmethod
    def of(cls, kube: Kube, name: str, claim: str) -> Artifacts:
        status = kube.status(name)
        address = {entry["name"]: entry["artifact"] for entry in status["stages"]}
        return cls(claim_path(kube, claim), address)

    def directory(self, stage: str) -> Path:
        return self.root / self.address[stage]

    def manifest(self, stage: str) -> JsonObject:
        found: JsonObject = json.loads((self.directory(stage) / "manifest.json").read_text(encoding="utf-8"))
        return found

    def manifests(self) -> dict[str, bytes]:
        return {stage: (self.directory(stage) / "manifest.json").read_bytes() for stage in self.address}

    def hashes(self, *, but: frozenset[str] = frozenset()) -> dict[str, str]:
        """Return the sha256 of every file in the manifests, but of those names."""
        return {
            f"{stage}: {entry['name']}": entry["sha256"]
            for stage in self.address
            for entry in self.manifest(stage)["files"]
            if Path(entry["name"]).name not in but
        }

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the metrics of every stage, without those of a clock."""
        return {stage: timeless(self.manifest(stage)["metrics"]) for stage in self.address}

    def training_log(self, stage: str) -> list[dict[str, float]]:
        lines = (self.directory(stage) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [timeless(json.loads(line)) for line in lines]

    def table(self, stage: str, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.directory(stage) / name)


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in _CLOCKED}


def claim_path(kube: Kube, claim: str) -> Path:
    assert kube.state_dir is not None
    return claim_directory(kube.state_dir, NAMESPACE, claim)


def work_directory(kube: Kube, name: str, claim: str, stage: str) -> Path:
    """Return where a stage writes, once it is planned."""
    key = wait_until(f"{stage} of {name} is planned", lambda: kube.stage(name, stage).get("hash"))
    return claim_path(kube, claim) / stage / str(key)


def engine_process(kube: Kube, name: str, stage: str, *, replica: str = "") -> int | None:
    """Return the pid of a running pod's engine; of a gang, that of the rank in the replica (master or worker).

    The node's files and /proc are read, because a look with kubectl can take as long as a stage that starts warm.
    """
    markers = [f"{MARKER}={marker}\0".encode() for marker in _markers(kube, name, stage, replica)]
    for entry in Path("/proc").iterdir() if markers else ():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            if _is_engine(entry) and any(marker in (entry / "environ").read_bytes() for marker in markers):
                return pid
    return None


def _markers(kube: Kube, name: str, stage: str, replica: str) -> Iterator[str]:
    """Yield what the processes of a stage's containers have in their environment."""
    assert kube.state_dir is not None
    reports = f"/experiments/{name}/stages/{stage.replace('/', '.')}/"
    for file in kube.state_dir.glob("pods/*/*/*.spec.json"):
        # A file may be half written, or gone with its pod.
        with contextlib.suppress(OSError, ValueError):
            text = file.read_text(encoding="utf-8")
            env = json.loads(text)["env"] if reports in text else {}
            if reports in env.get("KUBEFLOW_TRAINER_SERVER_URL", "") and replica in env["HOSTNAME"]:
                yield env[MARKER]


def _is_engine(process: Path) -> bool:
    """Whether a process is a stage's; the launcher of a rank and the supervisor of a container are other programs."""
    # A stage that started warm has the command line of the warm process.
    if (process / "comm").read_text(encoding="utf-8") == "wrpo-engine\n":
        return True
    command = (process / "cmdline").read_bytes()
    return b"wrpo_engine\0" in command or b"/wrpo-engine\0" in command


def kill_when(pid: int, what: str, condition: Callable[[], object], *, too_late: Callable[[], bool]) -> None:
    """Kill a process without warning once the condition holds."""
    stop_when([pid], what, condition)
    late = too_late()
    os.kill(pid, signal.SIGKILL)
    assert not late, f"{what}: the work was done before the kill; the test must give the stage more to do"
