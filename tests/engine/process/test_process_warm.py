"""Stages that are forked from the embedded control plane's warm process."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import stage_config
from support.patience import LIMIT_S

from wrpo_devcluster.config import default_environment
from wrpo_devcluster.kubelet import warm as warm_module
from wrpo_devcluster.kubelet.containers import Launch, launch
from wrpo_devcluster.kubelet.records import Attempt
from wrpo_devcluster.kubelet.warm import WarmProcess
from wrpo_engine.artifacts.manifest import Manifest
from wrpo_engine.config import ArtifactRef
from wrpo_operator.cli.local import WARM

RESIDUE = """
import gc, os, sys
from pathlib import PurePath
from wrpo_devcluster.kubelet import warm_server
from wrpo_engine.process import warm
imported = warm_server.load(warm)
assert warm_server.unsafe() is None, warm_server.unsafe()
warm_server.move_paths(imported, "/moved")
# What torchrun sets for a rank, whose process may be a fork of the launcher's (see wrpo_engine.process.spares).
ranks = {f"{of}{what}" for of in ("", "LOCAL_", "GROUP_", "ROLE_") for what in ("RANK", "WORLD_SIZE", "NAME")}
print("read:", [name for name in imported.reads if name in ranks or name.startswith(("MASTER_", "TORCHELASTIC_"))])
own = {id(each) for each in (imported.before, imported.reads, imported.added, *imported.paths)}
for box in gc.get_objects():
    values = list(box.values()) if type(box) is dict else box if type(box) in {list, tuple, set, frozenset} else ()
    for value in values if id(box) not in own else ():
        if issubclass(type(value), (str, PurePath)) and str(value).startswith(imported.home):
            print("left:", value)
import huggingface_hub.constants
print(huggingface_hub.constants.HF_HOME)
"""


@pytest.mark.slow
def test_no_path_below_the_warm_process_home_is_left_after_a_fork(tmp_path: Path) -> None:
    env = {**default_environment(os.environ), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", RESIDUE], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "read: []\n/moved/.cache/huggingface\n"), done.stderr


def run(warm: WarmProcess | None, name: str, argv: list[str], env: dict[str, str], tmp_path: Path) -> str:
    """Run a stage as a container; return its log."""
    attempt = Attempt(tmp_path / "pods" / name / "c", 0)
    launch(attempt, Launch(argv, env, tmp_path), warm)
    deadline = time.monotonic() + LIMIT_S
    while (ended := attempt.exit()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    log = attempt.log_file.read_text()
    assert ended.exit_code == 0, log
    return log


@pytest.mark.slow
def test_a_forked_stage_computes_the_same_bytes(
    tmp_path: Path, commit_artifact: Any, tiny_reward_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[bool] = []
    fork = WarmProcess.fork

    def recorded(self: WarmProcess, spec_file: Path, log_file: Path) -> bool:
        forks.append(fork(self, spec_file, log_file))
        return forks[-1]

    monkeypatch.setattr(WarmProcess, "fork", recorded)
    # A reply that came too late on a busy machine would start the stage.
    monkeypatch.setattr(warm_module, "_REPLY_S", LIMIT_S)
    texts = [f"answer {number} " * number for number in range(1, 9)]
    prompts = pl.DataFrame({"prompt_id": ["p"], "prompt": ["why?"]})
    columns = {"prompt_id": "p", "source": "a", "sample_index": list(range(8)), "text": texts, "finish_reason": "stop"}
    inputs = {
        "prompts": commit_artifact("prepare", {"sft.parquet": prompts}),
        "samples/a": commit_artifact("sample/a", {"parts/part-00000.parquet": pl.DataFrame(columns)}),
    }
    output = ArtifactRef(stage="score/a", hash="0123456789abcdef")
    params = {"stage": "score", "reward": {"name": str(tiny_reward_dir)}}
    config = tmp_path / "score.json"
    config.write_text(stage_config(params, inputs, stage=output.stage, hash_=output.hash).model_dump_json())
    base = default_environment(os.environ)
    own = {"HOME": str(tmp_path / "home"), "WRPO_VOLUME_ROOT": str(tmp_path / "storage"), "OMP_NUM_THREADS": "1"}
    env = {**base, **own, "CUDA_VISIBLE_DEVICES": ""}
    (tmp_path / "home").mkdir()
    artifact = tmp_path / "storage" / output.stage / output.hash
    found: list[list[str]] = []
    warm = WarmProcess(WARM, base, tmp_path / "warm")
    warm.start()
    try:
        connection = warm._connection
        assert connection is not None
        assert select.select([connection], [], [], LIMIT_S)[0], (tmp_path / "warm" / "warm.log").read_text()
        for name, process in (("forked", warm), ("started", None)):
            run(process, name, ["wrpo-engine", "score", "--config", str(config)], env, tmp_path)
            manifest = Manifest.model_validate_json((artifact / "manifest.json").read_bytes())
            found.append([f"{entry.name} {entry.sha256}" for entry in manifest.files])
            shutil.rmtree(artifact)
    finally:
        warm.close()
    assert (forks, found[0]) == ([True], found[1])
