"""What the launcher sets for the ranks of its node, and what it says about the network between nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_support import stage_config

from wrpo_engine.config import ExitCode
from wrpo_engine.training import launch as launcher

TRAIN = {"stage": "train", "model": {"name": "/models/m"}, "learning_rate": 1e-6}


@pytest.fixture(autouse=True)
def _no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_torchrun", lambda *_: 0)
    monkeypatch.setattr(launcher, "meet", lambda *_, **__: None)
    monkeypatch.setattr(launcher, "usable_cores", lambda: 24)


def launched(tmp_path: Path, *, offload: str = "none", **given: str) -> dict[str, str]:
    path = tmp_path / "stage.json"
    path.write_text(stage_config(TRAIN, runtime={"offload": offload}).model_dump_json())
    environ = {"HOME": str(tmp_path), **given}
    assert launcher.launch(["train", "--config", str(path)], environ) == 0
    return environ


def test_ranks_share_the_cores_if_the_optimizer_computes_on_them(tmp_path: Path) -> None:
    assert launched(tmp_path, offload="optimizer", PET_NPROC_PER_NODE="8")["OMP_NUM_THREADS"] == "3"
    mine = launched(tmp_path, offload="optimizer", PET_NPROC_PER_NODE="8", OMP_NUM_THREADS="2")
    assert mine["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in launched(tmp_path, PET_NPROC_PER_NODE="8")
    assert "OMP_NUM_THREADS" not in launched(tmp_path, offload="optimizer")


def test_ranks_get_the_allocator_of_training(tmp_path: Path) -> None:
    assert launched(tmp_path)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize(("nodes", "rank", "expected"), [("2", "0", 2), ("2", "1", 0), ("1", "0", 0)])
def test_the_first_of_several_nodes_says_what_nccl_will_find(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    nodes: str,
    rank: str,
    expected: int,
) -> None:
    monkeypatch.setattr(launcher, "fabric", lambda: (8 * 2**20, ["uverbs0"]))
    with caplog.at_level("INFO", "wrpo_engine"):
        launched(tmp_path, PET_NNODES=nodes, PET_NODE_RANK=rank, PET_MASTER_ADDR="a", PET_MASTER_PORT="1")
    assert len(caplog.messages) == expected
    if expected:
        assert caplog.messages[0].startswith("between nodes: /dev/infiniband has uverbs0")
        assert caplog.records[1].levelname == "WARNING"
        assert "Set LimitMEMLOCK=infinity" in caplog.messages[1]


RANKS = """
import os, sys
from wrpo_engine.config import Runtime
from wrpo_engine.process import spares, warm
from wrpo_engine.training import launch

warm.MODULES, warm.adopt = (), lambda environ: None
for kept in (2, 0):
    spares.keep(kept, os.environ)
    print([launch._torchrun(["train", "--config", "absent"], Runtime()), len(spares._WAITING)], flush=True)
"""
"""Two launches of a broken stage with two ranks: by spares, and by programs."""


def test_ranks_by_spares_end_a_launch_as_programs_do(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PET_NPROC_PER_NODE": "2",
        "PET_RDZV_ENDPOINT": "127.0.0.1:0",
        "PET_RDZV_BACKEND": "c10d",
        "WRPO_TERMINATION_MESSAGE_PATH": str(told),
    }
    done = subprocess.run([sys.executable, "-c", RANKS], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == f"[{int(ExitCode.USAGE)}, 0]\n" * 2, done.stderr
    assert "--config absent cannot be read: No such file or directory" in done.stderr
    assert json.loads(told.read_text())["exit_code"] == ExitCode.USAGE
