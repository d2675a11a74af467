"""Scoring stopped twenty times at seeded random points, by SIGKILL and SIGTERM, ends with the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import stage_config
from forked_stages import fork_context
from support.patience import LIMIT_S
from support.stopping import kill_within_work, stop_when

from wrpo_engine.artifacts.manifest import Manifest
from wrpo_engine.config import ArtifactRef

STOPS = 20
NUM_PROMPTS, RESPONSES = 60, 5


def run_stage(config: str, environ: dict[str, str], log: str) -> None:
    """The process's whole life is that of `wrpo-engine score --config FILE`."""
    os.environ.update(environ)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from wrpo_engine.__main__ import main

    main(["score", "--config", config])


def start(context: Any, config: Path, environ: dict[str, str], log: Path) -> BaseProcess:
    process: BaseProcess = context.Process(target=run_stage, args=(str(config), environ, str(log)))
    process.start()
    return process


def parts(directory: Path) -> int:
    return len(list((directory / "parts").glob("*.parquet"))) if directory.is_dir() else 0


def stop_somewhere(process: BaseProcess, directory: Path, draw: random.Random) -> signal.Signals | None:
    """Let it publish a few parts more or none, wait a little longer, then stop it; None if it ended before."""
    goal = parts(directory) + draw.choice([0, 0, 1, 2, 3])
    assert process.pid is not None
    stop_when([process.pid], f"{goal} parts", lambda: parts(directory) >= goal or not process.is_alive(), slice_s=0.005)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)
    process.join(draw.uniform(0, 0.06))
    kind = draw.choice([signal.SIGKILL, signal.SIGTERM])
    is_within = kill_within_work(process.pid, kind)
    process.join(LIMIT_S)
    return kind if is_within else None


def content(directory: Path) -> dict[str, bytes]:
    """The bytes of every file of the artifact; of the manifest all but the hour."""
    manifest = Manifest.model_validate_json((directory / "manifest.json").read_bytes())
    files = {entry.name: (directory / entry.name).read_bytes() for entry in manifest.files}
    return files | {"manifest": manifest.model_dump_json(exclude={"created_at"}).encode()}


def commit_inputs(commit_artifact: Any, draw: random.Random) -> dict[str, ArtifactRef]:
    texts = ["".join(draw.choices("abc de", k=draw.randint(1, 300))) for _ in range(NUM_PROMPTS * RESPONSES)]
    prompts = pl.DataFrame({"prompt_id": [f"p{n}" for n in range(NUM_PROMPTS)], "prompt": ["why?"] * NUM_PROMPTS})
    samples = pl.DataFrame(
        {
            "prompt_id": [f"p{n // RESPONSES}" for n in range(len(texts))],
            "source": ["tiny"] * len(texts),
            "sample_index": [n % RESPONSES for n in range(len(texts))],
            "text": texts,
            "finish_reason": ["stop"] * len(texts),
        }
    )
    return {
        "prompts": commit_artifact("prepare", {"sft.parquet": prompts}),
        "samples/tiny": commit_artifact("sample/tiny", {"parts/part-00000.parquet": samples}),
    }


EXPECTED = {None: {0}, signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {143, -signal.SIGTERM, 0}}
"""Exit codes by what stopped the process. SIGTERM itself ends it before the handler is installed; after the last part
it may still finish."""


@pytest.mark.slow
def test_scoring_stopped_twenty_times_ends_with_the_same_bytes(
    tmp_path: Path, commit_artifact: Any, tiny_reward_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    draw = random.Random(20)
    inputs = commit_inputs(commit_artifact, draw)
    output = ArtifactRef(stage="score/tiny", hash="0123456789abcdef")
    params = {"stage": "score", "reward": {"name": str(tiny_reward_dir)}, "rows_per_part": 3}
    runtime = {"batch_tokens": 1}
    config = tmp_path / "score.json"
    stage = stage_config(params, inputs, stage=output.stage, hash_=output.hash, runtime=runtime)
    config.write_text(stage.model_dump_json())
    storage = tmp_path / "storage"
    directory = storage / output.stage / output.hash
    message = tmp_path / "message.json"
    environ = {
        "WRPO_VOLUME_ROOT": str(storage),
        "WRPO_TERMINATION_MESSAGE_PATH": str(message),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
    }
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
    # One server imports the libraries; each attempt is a process forked from it that lives and dies by itself.
    context = fork_context()

    def whole() -> dict[str, bytes]:
        process = start(context, config, environ, tmp_path / "log")
        process.join(LIMIT_S)
        assert process.exitcode == 0, (tmp_path / "log").read_text()[-3000:]
        return content(directory)

    undisturbed = whole()
    assert len(undisturbed) == 1 + NUM_PROMPTS * RESPONSES // 3
    shutil.rmtree(directory)

    stops: list[signal.Signals] = []
    cut_short = 0
    while len(stops) < STOPS:
        kind = stop_somewhere(process := start(context, config, environ, tmp_path / "log"), directory, draw)
        assert process.exitcode in EXPECTED[kind], (tmp_path / "log").read_text()[-3000:]
        if process.exitcode == 143:
            assert json.loads(message.read_text())["outcome"] == "Interrupted"
        if kind is not None:
            stops.append(kind)
        cut_short += 0 < parts(directory) < len(undisturbed) - 1
        if (directory / "manifest.json").exists():
            assert content(directory) == undisturbed
            shutil.rmtree(directory)
    assert whole() == undisturbed
    assert set(stops) == {signal.SIGKILL, signal.SIGTERM}
    # The points were within the work, not only before and after it.
    assert cut_short >= STOPS // 2
    print(f"{len(stops)} stops in {time.monotonic() - begun:.1f} s", file=sys.stderr)
