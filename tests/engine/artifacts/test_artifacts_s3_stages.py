"""Real stages on a bucket, as processes: prepare, then sampling in shards of which one is killed between two parts."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_support import stage_config
from support.fault_proxy import Answer, FaultProxy
from support.patience import LIMIT_S
from support.s3_server import S3Server

from wrpo_engine.artifacts.s3 import S3Store
from wrpo_engine.config import ArtifactRef, TerminationMessage

Connect = Callable[..., S3Store]
PREPARED = ArtifactRef(stage="prepare", hash="00000000000000aa")
PROMPTS = 8


class Pods:
    """Runs stages as pods do: each with a scratch directory of its own and nothing else but the bucket."""

    def __init__(self, directory: Path, uri: str) -> None:
        self.directory, self.uri = directory, uri
        self.count = 0

    def start(
        self, params: dict[str, Any], ref: ArtifactRef, *, endpoint: str, shard: int = 0, shards: int = 1
    ) -> tuple[subprocess.Popen[str], Path]:
        self.count += 1
        own = self.directory / f"pod-{self.count}"
        own.mkdir()
        inputs = {"prompts": PREPARED} if ref.stage != "prepare" else {}
        config = stage_config(params, inputs, stage=ref.stage, hash_=ref.hash, runtime={"shards": shards})
        raw = json.loads(config.model_dump_json())
        raw["storage"] = {"kind": "s3", "uri": self.uri, "endpoint": endpoint}
        (own / "stage.json").write_text(json.dumps(raw))
        environ = {
            **os.environ,
            "WRPO_SCRATCH": str(own),
            "WRPO_TERMINATION_MESSAGE_PATH": str(own / "outcome"),
            "JOB_COMPLETION_INDEX": str(shard),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "wrpo_engine", params["stage"], "--config", str(own / "stage.json")]
        process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
        return process, own / "outcome"

    def run(self, *arguments: Any, **more: Any) -> TerminationMessage:
        process, outcome = self.start(*arguments, **more)
        words = process.communicate(timeout=LIMIT_S)[1]
        assert process.returncode == 0, words
        return TerminationMessage.model_validate_json(outcome.read_bytes())


def is_part(request: Any) -> bool:
    return request.method == "PUT" and "/parts/part-" in request.path


def hold_the_third_part(proxy: FaultProxy) -> threading.Event:
    """Let two parts through and hold the third; return the event that says so."""
    reached, parts = threading.Event(), itertools.count(1)

    def hold(request: Any) -> Answer | None:
        if is_part(request) and next(parts) == 3:
            reached.set()
            proxy.closing.wait(LIMIT_S)
        return None

    proxy.faults = [hold]
    return reached


@pytest.mark.slow
def test_a_shard_killed_between_parts_goes_on_in_a_new_pod_and_leaves_the_same_bytes(
    connect: Connect, s3: S3Server, bucket: str, root: str, proxy: FaultProxy, tmp_path: Path, tiny_model_dir: Path
) -> None:
    for path in tiny_model_dir.iterdir():
        s3.client().upload_file(str(path), bucket, f"{root}/models/tiny/{path.name}")
    prompts = "".join(json.dumps({"prompt": f"How much is {n} and {n}?"}) + "\n" for n in range(PROMPTS))
    s3.client().put_object(Bucket=bucket, Key=f"{root}/prompts.jsonl", Body=prompts.encode())
    pods = Pods(tmp_path, f"s3://{bucket}/{root}")
    prepared = pods.run({"stage": "prepare", "dataset": "storage://prompts.jsonl"}, PREPARED, endpoint=s3.endpoint)
    assert prepared.rows == PROMPTS

    params = {
        "stage": "sample",
        "model": {"name": "storage://models/tiny"},
        "source": "a",
        "backend": "Transformers",
        "samples_per_prompt": 2,
        "max_tokens": 6,
        "prompts_per_part": 1,
        "dtype": "float32",
    }
    whole, halves = (ArtifactRef(stage="sample/a", hash=hash_) for hash_ in ("00000000000000aa", "00000000000000bb"))
    pods.run(params, whole, endpoint=s3.endpoint)

    reached = hold_the_third_part(proxy)
    process, _ = pods.start(params, halves, endpoint=proxy.endpoint, shard=0, shards=2)
    assert reached.wait(LIMIT_S)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    base = f"{root}/sample/a/{halves.hash}/parts/"
    kept = {key: etag(s3, bucket, key) for key in s3.keys(bucket, base)}
    assert len(kept) == 2

    proxy.faults, proxy.requests[:] = [], []
    pods.run(params, halves, endpoint=proxy.endpoint, shard=0, shards=2)
    made_again = {f"{base}part-{r.path.rsplit('part-', 1)[1].split('?')[0]}" for r in proxy.requests if is_part(r)}
    assert len(made_again) == PROMPTS // 2 - 2
    assert not made_again & set(kept)
    assert connect("reader").open(halves) is None
    last = pods.run(params, halves, endpoint=s3.endpoint, shard=1, shards=2)
    assert last.artifact == f"sample/a/{halves.hash}"
    assert {key: etag(s3, bucket, key) for key in kept} == kept

    reader = connect("reader")
    one, other = reader.open(whole), reader.open(halves)
    assert one is not None
    assert other is not None
    assert len(one.manifest.files) == PROMPTS
    assert other.manifest.files == one.manifest.files
    assert other.manifest.metrics == one.manifest.metrics
    assert [other.file(name).read_bytes() for name in other.files()] == [one.file(n).read_bytes() for n in one.files()]
    assert pods.run(params, halves, endpoint=s3.endpoint).cached


def etag(s3: S3Server, bucket: str, key: str) -> tuple[str, str]:
    head = s3.client().head_object(Bucket=bucket, Key=key)
    return head["ETag"], str(head["LastModified"])


def test_a_corrupt_part_is_named(
    connect: Connect, s3: S3Server, bucket: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wrpo_engine.artifacts.parts import commit_when_complete, part_name
    from wrpo_engine.running import run
    from wrpo_engine.stage import StageContext, StageResult, StopRequest

    s3.client().put_object(Bucket=bucket, Key=f"{root}/score/a/{PREPARED.hash}/{part_name(0)}", Body=b"no parquet")
    made = stage_config({"stage": "score", "reward": {"name": "x"}}, stage="score/a", hash_=PREPARED.hash)
    config = json.loads(made.model_dump_json())
    config["storage"] = {"kind": "s3", "uri": f"s3://{bucket}/{root}", "endpoint": s3.endpoint}
    path = tmp_path / "stage.json"
    path.write_text(json.dumps(config))

    def commit(ctx: StageContext) -> StageResult:
        commit_when_complete(ctx, [part_name(0)], details={}, measure=lambda frames: {"rows": float(len(list(frames)))})
        return StageResult(rows=0)

    environ = {"WRPO_SCRATCH": str(tmp_path), "WRPO_TERMINATION_MESSAGE_PATH": str(tmp_path / "outcome")}
    assert run("score", path, environ, stop=StopRequest(), load=lambda _kind: commit) == 65
    error = TerminationMessage.model_validate_json((tmp_path / "outcome").read_bytes()).error
    assert error is not None
    assert error.code == "ArtifactDamaged"
    assert f"part parts/part-00000.parquet of score/a/{PREPARED.hash}" in error.message
