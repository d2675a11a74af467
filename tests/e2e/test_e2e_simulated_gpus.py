"""The published run on simulated nodes of 8x80 GB: placements, accelerators in use at any time, none idle."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e_support import EXTERNAL, claim
from rbac_world import OPEN_CRDS, TEAM, World

from wrpo_devcluster.config import SimulatedRule
from wrpo_devcluster.products import parse_nodes
from wrpo_engine.config import FetchParams, InspectParams, TerminationMessage
from wrpo_operator.api import names
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.cli.install import CHECKOUT, find_chart
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import StageNode
from wrpo_operator.sizing.catalogue import known_facts

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(EXTERNAL, reason="needs the nodes of the embedded control plane"),
]
JsonObject = dict[str, Any]
GPU = "nvidia.com/gpu"
NODES, PER_NODE = 4, 8
GPUS = NODES * PER_NODE
RUN_S = "fake.test/run-seconds"
LIVE = {"Pending", "Running"}
WAITING = re.compile(r"Waiting for ([0-9]+) accelerators")


def paper() -> JsonObject:
    """Return the example with the sizes left to the operator."""
    found: JsonObject = yaml.safe_load((CHECKOUT / "examples" / "paper-wrpo-dpo.yaml").read_text(encoding="utf-8"))
    spec = found["spec"]
    for section in (*spec["sources"], spec["sampling"], spec["reward"]):
        for name in ("shards", "resources", "tensorParallelSize"):
            section.pop(name, None)
            section.get("sampling", {}).pop(name, None)
    for name in ("nodes", "gpusPerNode", "gradientCheckpointing"):
        spec["training"].pop(name, None)
    spec.pop("resources", None)
    spec["storage"]["volume"]["claimName"] = "artifacts"
    return found


def stand_ins(graph: Sequence[StageNode]) -> tuple[SimulatedRule, ...]:
    """Return what pods of stages do: those that read a model report its facts, those with accelerators run on."""
    rules = []
    for node in graph:
        does = {"fake.test/start-seconds": "0"}
        if node.id.kind in {"inspect", "fetch"}:
            assert isinstance(node.params, InspectParams | FetchParams)
            known = known_facts(str(node.params.model.name))
            assert known is not None
            message = TerminationMessage(outcome="Succeeded", facts=known.facts)
            does["fake.test/termination-message"] = message.model_dump_json(exclude_none=True)
        elif node.needs:
            does[RUN_S] = "forever"
        rules.append(SimulatedRule({names.LABEL_STAGE: names.stage_label(str(node.id))}, does))
    return tuple(rules)


def gpus_of(pod: JsonObject) -> int:
    return sum(int(c["resources"].get("limits", {}).get(GPU, 0)) for c in pod["spec"]["containers"])


class Run:
    """The experiment while it runs, observed in the pods' records and in its status."""

    def __init__(self, world: World, name: str, graph: Sequence[StageNode]) -> None:
        self.world, self.name = world, name
        self.sized = {str(node.id): node for node in graph if node.needs}
        self.most: list[int] = []
        self.placements: dict[str, JsonObject] = {}

    def pods(self) -> list[JsonObject]:
        """Return the pods with accelerators that have not ended; check that no node holds more than it has."""
        items = self.world.get("pods")["items"]
        live = [pod for pod in items if gpus_of(pod) and (pod.get("status") or {}).get("phase") in LIVE]
        used: Counter[str] = Counter()
        for pod in live:
            if pod["spec"].get("nodeName"):
                used[pod["spec"]["nodeName"]] += gpus_of(pod)
        assert all(count <= PER_NODE and node.startswith("h100-") for node, count in used.items()), used
        self.most.append(used.total())
        return live

    def settled(self) -> list[JsonObject] | str:
        """Return the running pods once every stage that can run runs or waits for more than is free."""
        status, pods = self.world.status(self.name), self.pods()
        stages = {stage["name"]: stage for stage in status.get("stages", [])}
        for name, stage in stages.items():
            if stage.get("placement"):
                self.placements[name] = stage["placement"]
        if status.get("phase") == "Succeeded":
            return "Succeeded"
        running = {names.stage_from_label(pod["metadata"]["labels"][names.LABEL_STAGE]) for pod in pods}
        done = {name for name, stage in stages.items() if stage.get("state") == "Succeeded"}
        waiting = {
            name: int(match[1])
            for name, stage in stages.items()
            if stage.get("state") == "Waiting" and (match := WAITING.search(stage.get("message", "")))
        }
        ready = {
            name
            for name, node in self.sized.items()
            if name not in done | running and {str(stage) for stage in node.upstream} <= done
        }
        free = GPUS - sum(gpus_of(pod) for pod in pods)
        all_run = all(pod["status"].get("phase") == "Running" for pod in pods)
        is_settled = all_run and ready <= set(waiting)
        has_no_idle = is_settled and max((waiting[name] for name in ready), default=GPUS + 1) > free
        return pods if pods and has_no_idle else ""

    def wait_settled(self) -> list[JsonObject] | str:
        """Return the result of `settled` as soon as there is one."""
        try:
            found: list[JsonObject] | str = self.world.wait("no accelerator idles", self.settled)
        except AssertionError as error:
            status = self.world.status(self.name)
            states = {stage["name"]: (stage.get("state"), stage.get("message")) for stage in status.get("stages", [])}
            pods = [(pod["metadata"]["name"], pod["spec"].get("nodeName"), gpus_of(pod)) for pod in self.pods()]
            raise AssertionError(f"{error}\n{states}\n{status.get('blockers')}\n{pods}") from None
        return found

    def end(self, pods: list[JsonObject]) -> None:
        """End the stage of the first pod, and wait until its pods have ended."""
        stage = min(pod["metadata"]["labels"][names.LABEL_STAGE] for pod in pods)
        own = [pod for pod in pods if pod["metadata"]["labels"][names.LABEL_STAGE] == stage]
        uids = {pod["metadata"]["uid"] for pod in own}
        self.world.annotate_pods(own, run_seconds="0")
        self.world.wait(f"the pods of {stage} end", lambda: not uids & {pod["metadata"]["uid"] for pod in self.pods()})


def test_the_published_run_uses_simulated_nodes_fully_and_never_more(tmp_path: Path) -> None:
    example = paper()
    name, graph = example["metadata"]["name"], build_graph(parse_spec(example["spec"]))
    nodes = parse_nodes(f"h100={NODES}x{PER_NODE}", cpu="192", memory="2048Gi")
    with World(tmp_path / "world", "cluster", {}, nodes=nodes, rules=stand_ins(graph)) as world:
        world.apply(*OPEN_CRDS)
        world.run("kubectl", "create", "namespace", TEAM)
        world.helm(find_chart())
        world.apply(claim())
        world.start_operator()
        world.apply(example)
        run = Run(world, name, graph)
        while (found := run.wait_settled()) != "Succeeded":
            assert not isinstance(found, str), found
            run.end(found)
        status = world.status(name)
    assert max(run.most) <= GPUS
    assert {stage["state"] for stage in status["stages"]} <= {"Succeeded"}
    assert set(run.placements) == set(run.sized)
    sizes = {stage: placement.get("tensorParallelSize", 1) for stage, placement in run.placements.items()}
    assert {stage: size for stage, size in sizes.items() if size > 1} == {
        "sample/mistral-large": 4,
        "sample/gemma-2-27b": 2,
        "sample/qwen2-72b": 4,
        "sample/llama-3-70b": 4,
        "sample/deepseek-v2": 8,
        "sample/deepseek-coder-v2": 8,
        "sample/yi-1-5-34b": 2,
    }
    assert {placement["accelerator"] for placement in run.placements.values()} == {"NVIDIA-H100-80GB-HBM3"}
