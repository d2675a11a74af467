"""Ranks in pods without a shared directory: all shared files pass through a real S3 server."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_support import EXPERIMENT_HASH, NOON
from safetensors.torch import load_file
from support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from training_support import freeze_when, make_experiment, run_ranks, start_ranks

from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.config import ArtifactRef, S3Storage

SETTINGS = {"stage": "train", "beta": 0.1, "epochs": 8, "zero_stage": 3}
RUNTIME = {"checkpoint_every_steps": 3}


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    server = S3Server(tmp_path / "s3").start()
    yield server
    server.kill()


@pytest.mark.slow
def test_killed_pods_continue_elsewhere_with_empty_caches(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_volume, on_s3 = make_experiment(tmp_path / "volume"), make_experiment(tmp_path / "bucket")
    run_ranks(on_volume, on_volume.config(SETTINGS, RUNTIME), world_size=2)

    storage = S3Storage(uri=f"s3://{s3.make_bucket('training')}/wrpo", endpoint=s3.endpoint)
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)

    def connect(pod: str) -> S3Store:
        return S3Store.connect(storage, {**keys, "WRPO_SCRATCH": str(tmp_path / pod)}, lambda: NOON)

    writer = connect("maker").writer(ArtifactRef(stage="curate-triples", hash=EXPERIMENT_HASH), config={}, inputs={})
    table = on_s3.output("curate-triples") / "triples.parquet"
    writer.publish(table.name, lambda path: shutil.copyfile(table, path))
    writer.commit(files=[table.name], rows={table.name: 11})

    config = on_s3.config(SETTINGS, RUNTIME)
    config.write_text(json.dumps({**json.loads(config.read_text()), "storage": storage.model_dump()}))

    def pods(attempt: int) -> list[dict[str, str]]:
        return [{**keys, "WRPO_SCRATCH": str(tmp_path / f"attempt-{attempt}-pod-{rank}")} for rank in (0, 1)]

    gang = start_ranks(on_s3, config, world_size=2, pods=pods(1))
    output = connect("onlooker").writer(ArtifactRef(stage="train", hash=EXPERIMENT_HASH), config={}, inputs={})
    freeze_when(
        gang,
        "a checkpoint is published",
        lambda: any(name.endswith("checkpoint.json") for name in output.published("checkpoints/")),
    )
    gang.send(signal.SIGKILL)
    assert gang.wait() == [-9, -9]

    again = start_ranks(on_s3, config, world_size=2, pods=pods(2))
    assert again.wait() == [0, 0], again.text()
    assert "continuing after step" in again.text()
    artifact = connect("reader").open(ArtifactRef(stage="train", hash=EXPERIMENT_HASH))
    assert artifact is not None
    expected = on_volume.weights("train")
    weights = load_file(artifact.file("model/model.safetensors"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    rows = [json.loads(line) for line in artifact.file("metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert output.published("checkpoints/") == output.published("reference/") == []
