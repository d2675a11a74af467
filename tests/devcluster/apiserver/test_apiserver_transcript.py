"""Replies of the embedded control plane: equal to a real kube-apiserver 1.36, except for known differences."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from devcluster.transcript.compare import compare, load

from wrpo_devcluster.cluster import Cluster
from wrpo_devcluster.config import ClusterConfig, NodeConfig

TRANSCRIPT = Path(__file__).parents[1] / "transcript"
LEAST_EQUAL = 185
NODES = tuple(NodeConfig(name=f"gpu-{index}", cpu="32", memory="128Gi", gpus=8) for index in (0, 1))


async def record(state_dir: Path, output: Path) -> str:
    config = ClusterConfig(state_dir=state_dir, nodes=NODES, simulated=True, backoff_scale=0.2)
    async with Cluster(config) as cluster:
        environment = {
            "PATH": os.environ["PATH"],
            "KUBE_URL": cluster.url,
            "KUBE_CA": str(cluster.ca_path),
            "KUBE_TOKEN": cluster.admin_token,
            "RECORD_GC_WAIT_S": "0.5",
            "RECORD_JOBS_WAIT_S": "12",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(TRANSCRIPT / "record.py"),
            str(output),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 120)
        return said.decode()


@pytest.mark.slow
def test_answers_as_the_real_server_did_but_for_the_listed_differences(tmp_path: Path) -> None:
    output = tmp_path / "ours.json"
    said = asyncio.run(record(tmp_path / "state", output))

    real, ours = load(TRANSCRIPT / "kubernetes.json"), load(output)
    found = compare(real, ours)
    known = yaml.safe_load((TRANSCRIPT / "known_differences.yaml").read_text(encoding="utf-8"))
    always, timing = known["always"], known["timing"]

    assert "stopped" not in said, said
    unexpected = {name: lines for name, lines in found.items() if name not in always | timing}
    assert unexpected == {}
    assert always.keys() <= found.keys(), "the list names entries that agree now: take them off"
    assert len(real) - len(found) >= LEAST_EQUAL
    assert all(isinstance(reason, str) and len(reason) > 20 for reason in (always | timing).values())
