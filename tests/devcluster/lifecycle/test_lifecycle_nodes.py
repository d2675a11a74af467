"""Simulated nodes with accelerators: as real ones for kubectl and for the operator's inventory."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support.kubectl_wait import wait_for_condition
from support.patience import LIMIT_S, wait_until

from wrpo_devcluster import lifecycle
from wrpo_devcluster.__main__ import main
from wrpo_devcluster.bootstrap import node_object
from wrpo_devcluster.config import ClusterConfig, SimulatedRule, load_config, parse_rules, save_config
from wrpo_devcluster.products import PRODUCTS, parse_nodes
from wrpo_operator.cli.install import find_tool
from wrpo_operator.cli.planning import inventory_of
from wrpo_operator.sizing.inventory import Inventory
from wrpo_operator.sizing.nodes import CLOSE, node_inventory
from wrpo_operator.sizing.offers import node_fact
from wrpo_operator.sizing.selection import Selection

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def inventory(text: str) -> Inventory:
    """Return what the operator reads from the nodes of `--nodes`."""
    objects = [node_object(node, NOON) for node in parse_nodes(text, cpu="64", memory="512Gi")]
    facts = [fact for obj in objects if (fact := node_fact(obj)) is not None]
    return node_inventory(facts, Selection(), num_nodes=len(objects))


def test_the_operator_reads_the_simulated_nodes_as_real_ones() -> None:
    found = inventory("h100=4x8,l40s=2x4")
    assert [(g.name, g.memory_mib, g.per_node, g.nodes, g.compute_capability) for g in found.groups] == [
        ("NVIDIA-H100-80GB-HBM3", 81559, 8, 4, 9.0),
        ("NVIDIA-L40S", 46068, 4, 2, 8.9),
    ]
    assert (found.source, found.faults) == ("the labels of 6 nodes", ())


@pytest.mark.parametrize("name", sorted(set(PRODUCTS) - {"unlabelled"}))
def test_every_product_has_a_size_and_tolerated_taints(name: str) -> None:
    (group,) = inventory(f"{name}=2x4").groups
    assert (group.resource, group.per_node, group.nodes, group.is_slice) == (
        PRODUCTS[name].resource,
        4,
        2,
        "-mig-" in name,
    )
    assert group.labels
    if not group.is_slice:
        planned = inventory_of(f"{name}=2x4", None)
        assert planned is not None
        (same,) = planned.groups
        assert (same.resource, same.per_node, same.nodes) == (group.resource, group.per_node, group.nodes)
        assert same.memory_mib == pytest.approx(group.memory_mib, rel=CLOSE)


def test_nodes_without_feature_discovery_are_named() -> None:
    found = inventory("unlabelled=2x8")
    assert found.groups == ()
    assert found.faults[0].startswith("Nodes unlabelled-0 and unlabelled-1 offer nvidia.com/gpu without the label")


def test_a_node_without_accelerators_runs_the_other_stages() -> None:
    nodes = parse_nodes("h100=1x8", cpu="64", memory="512Gi")
    assert [(node.name, bool(node.taints)) for node in nodes] == [("h100-0", True), ("cpu-0", False)]
    assert [node.name for node in parse_nodes("l4=1x1,cpu=2x0", cpu="1", memory="1Gi")] == ["l4-0", "cpu-0", "cpu-1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h100", "--nodes has 'h100', which is not PRODUCT=NODESxEACH, e.g. h100=4x8"),
        ("h100=4x8,", "--nodes has '', which is not PRODUCT=NODESxEACH, e.g. h100=4x8"),
        ("h100=4x8,H100=1x8", "--nodes has h100 twice. Add the numbers of its nodes, or leave one out"),
        ("h100=0x8", "--nodes has 0 nodes of h100, which is not a number from 1 to 10000"),
        ("h100=1x0", "--nodes has 0 accelerators for each node of h100, which is not a number from 1 to 64"),
        ("cpu=1x8", "--nodes has 8 accelerators for each node of cpu, which is not 0"),
        ("x9000=1x8", f"--nodes has the product 'x9000'. Products are {', '.join(PRODUCTS)}, cpu"),
    ],
)
def test_wrong_nodes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["up", "--state-dir", str(tmp_path / "c"), "--simulated", "--nodes", text])
    assert (done.exit_code, done.output) == (1, f"Error: {message}\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nodes", "h100=1x8"), "--nodes and --pod-rules describe a simulated cluster: pass --simulated too"),
        (
            ("--simulated", "--nodes", "h100=1x8", "--gpus", "4"),
            "--nodes and --gpus exclude each other: --nodes has the accelerators of each node",
        ),
    ],
)
def test_nodes_belong_to_a_simulated_cluster(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["up", "--state-dir", str(tmp_path / "c"), *options])
    assert (done.exit_code, done.output) == (1, f"Error: {message}\n")


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"labels": {}}]', '[{"labels": {"a": 1}, "annotations": {}}]', "["])
def test_wrong_rules_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text(text, encoding="utf-8")
    options = ["--simulated", "--pod-rules", str(file)]
    done = CliRunner().invoke(main, ["up", "--state-dir", str(tmp_path / "c"), *options])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: --pod-rules {file} ")


def test_nodes_and_rules_read_back_as_they_were_saved(tmp_path: Path) -> None:
    rules = parse_rules('[{"labels": {"a": "b"}, "annotations": {"fake.test/exit-code": "1"}}]')
    nodes = parse_nodes("h100=1x8", cpu="64", memory="512Gi")
    config = ClusterConfig(state_dir=tmp_path, nodes=nodes, simulated=True, rules=rules)
    save_config(config)
    assert load_config(tmp_path) == config
    assert rules == (SimulatedRule({"a": "b"}, {"fake.test/exit-code": "1"}),)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    state_dir, rules = tmp_path / "cluster", tmp_path / "rules.json"
    told = {"fake.test/termination-message": "facts"}
    rules.write_text(json.dumps([{"labels": {"role": "asks"}, "annotations": told}]), encoding="utf-8")
    options = ["--simulated", "--nodes", "h100=2x8,l40s=1x4", "--pod-rules", str(rules)]
    try:
        done = CliRunner().invoke(main, ["up", "--state-dir", str(state_dir), *options])
        assert done.exit_code == 0, done.output
        yield state_dir / "kubeconfig"
    finally:
        lifecycle.reset(state_dir)


def pod(name: str, gpus: int, **labels: str) -> dict[str, object]:
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}] if gpus else []
    container = {"name": "c", "image": "i", "command": ["x"], "resources": {"limits": limits}}
    annotations = {"fake.test/run-seconds": "forever" if gpus else "0"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {"containers": [container], "tolerations": tolerations, "restartPolicy": "Never"},
    }


@pytest.mark.cluster
def test_kubectl_shows_the_nodes_and_the_scheduler_honours_their_accelerators(kubeconfig: Path) -> None:
    def kubectl(*arguments: str, stdin: str | None = None) -> str:
        env = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        command = [find_tool("kubectl"), *arguments]
        done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = kubectl("get", "nodes", "-L", "nvidia.com/gpu.product").splitlines()
    assert [line.split()[0::5] for line in shown[1:]] == [
        ["cpu-0"],
        ["h100-0", "NVIDIA-H100-80GB-HBM3"],
        ["h100-1", "NVIDIA-H100-80GB-HBM3"],
        ["l40s-0", "NVIDIA-L40S"],
    ]
    pods = [pod("one", 8), pod("two", 8), pod("three", 8), pod("four", 4), pod("plain", 0, role="asks")]
    kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(pods))
    wait_until("it succeeds", lambda: kubectl("get", "pod", "plain", "-o", "jsonpath={.status.phase}") == "Succeeded")
    wait_for_condition(kubectl, "Ready", "pod/one", "pod/two", "pod/four", timeout_s=LIMIT_S)
    wait_for_condition(kubectl, "PodScheduled=false", "pod/three", timeout_s=LIMIT_S)
    found = {each["metadata"]["name"]: each for each in json.loads(kubectl("get", "pods", "-o", "json"))["items"]}
    assert {found[name]["spec"]["nodeName"] for name in ("one", "two")} == {"h100-0", "h100-1"}
    assert [found[name]["spec"].get("nodeName") for name in ("four", "plain", "three")] == ["l40s-0", "cpu-0", None]
    (condition,) = [c for c in found["three"]["status"]["conditions"] if c["type"] == "PodScheduled"]
    assert "4 Insufficient nvidia.com/gpu" in condition["message"]
    assert found["plain"]["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "facts"
    described = kubectl("describe", "node", "h100-0")
    assert "Taints:             nvidia.com/gpu=present:NoSchedule" in described
    assert "  nvidia.com/gpu     8" in described
    assert [line.split() for line in described.splitlines() if line.startswith("  nvidia.com/gpu")][-1] == [
        "nvidia.com/gpu",
        "8",
        "8",
    ]
