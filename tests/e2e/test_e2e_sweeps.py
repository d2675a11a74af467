"""A sweep on a control plane: equal stages run once, and kills change nothing."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from typing import Any

import pytest
import yaml
from e2e_support import EXTERNAL, JsonObject, Kube, experiment
from support.patience import wait_until

from wrpo_devcluster import lifecycle

pytestmark = pytest.mark.cluster
embedded_only = pytest.mark.skipif(EXTERNAL, reason="kills the control plane")


def sweep(name: str, common: JsonObject, **spec: Any) -> JsonObject:
    return {
        "apiVersion": "wrpo.ai/v1alpha1",
        "kind": "WRPOSweep",
        "metadata": {"name": name},
        "spec": {"experiment": experiment(name, **common)["spec"], **spec},
    }


def rates(*values: float) -> list[JsonObject]:
    return [{"name": f"rate-{number}", "set": {"sft.learningRate": value}} for number, value in enumerate(values)]


def status(kube: Kube, name: str) -> JsonObject:
    return kube.get("wrposweeps.wrpo.ai", name).get("status") or {}


def wait_phase(kube: Kube, name: str, phase: str) -> JsonObject:
    def reached() -> JsonObject | None:
        found = status(kube, name)
        return found if found.get("phase") == phase else None

    return dict(wait_until(f"sweep {name} is {phase}", reached))


def started(kube: Kube, name: str) -> Counter[str]:
    """Return the number of children of all experiments of a sweep, by stage."""
    members = kube.list("wrpoexperiments.wrpo.ai", f"wrpo.ai/sweep={name}")
    children = [child for member in members for child in kube.children(member["metadata"]["name"])]
    return Counter(child["metadata"]["labels"]["wrpo.ai/stage"] for child in children)


def test_experiments_of_a_sweep_share_their_stages_and_differ_where_they_are_patched(kube: Kube) -> None:
    kube.apply(sweep("shared", {}, variants=rates(1e-6, 2e-6, 3e-6)))
    end = wait_phase(kube, "shared", "Succeeded")
    assert [(row["name"], row["phase"], row["experiments"]) for row in end["variants"]] == [
        ("rate-0", "Succeeded", "1/1"),
        ("rate-1", "Succeeded", "1/1"),
        ("rate-2", "Succeeded", "1/1"),
    ]
    stages = started(kube, "shared")
    assert stages.pop("sft") == 3
    assert stages == dict.fromkeys(stages, 1)
    table = kube.kubectl("get", "wsweep", "shared")
    assert table.split()[:9] == ["NAME", "PHASE", "DONE", "RUNNING", "FAILED", "AGE", "shared", "Succeeded", "3/3"]
    edit = {"spec": {"variants": rates(1e-6, 4e-6)}}
    patch(kube, "shared", edit)
    wait_until(
        "the edit is done", lambda: [row["name"] for row in status(kube, "shared")["variants"]] == ["rate-0", "rate-1"]
    )
    end = wait_phase(kube, "shared", "Succeeded")
    members = kube.list("wrpoexperiments.wrpo.ai", "wrpo.ai/sweep=shared")
    assert sorted(member["metadata"]["name"] for member in members) == ["shared-rate-0", "shared-rate-1"]
    kube.kubectl("delete", "wsweep", "shared")
    wait_until("its experiments are gone", lambda: not kube.list("wrpoexperiments.wrpo.ai", "wrpo.ai/sweep=shared"))


def patch(kube: Kube, name: str, change: JsonObject) -> None:
    kube.kubectl("patch", "wsweep", name, "--type=merge", "-p", json.dumps(change))


def test_what_makes_no_valid_sweep_is_refused_or_told_at_once(kube: Kube) -> None:
    nothing = kube.kubectl("apply", "-f", "-", stdin=_yaml(sweep("nothing", {})), check=False)
    assert "variants and grid are both empty" in nothing
    kube.apply(sweep("wrong", {}, variants=[{"name": "typo", "set": {"training.bta": 1}}]))
    end = wait_phase(kube, "wrong", "Invalid")
    accepted = next(entry for entry in end["conditions"] if entry["type"] == "Accepted")
    assert accepted["message"].startswith("Variant typo: spec.training.bta is not a known field.")
    assert kube.list("wrpoexperiments.wrpo.ai", "wrpo.ai/sweep=wrong") == []
    kube.kubectl("delete", "wsweep", "wrong")


def _yaml(obj: JsonObject) -> str:
    return str(yaml.safe_dump(obj))


@embedded_only
def test_kills_of_operator_and_control_plane_in_the_middle_end_with_the_same_sweep(kube: Kube) -> None:
    assert kube.state_dir is not None
    held = kube.behave(hold="sample/a:sweep-killed")
    kube.apply(sweep("killed", held, variants=rates(1e-6, 2e-6), parallelExperiments=1))
    kube.wait_stage("killed-rate-0", "sample/a", "Running")
    kube.kill_operator()
    state_dir = kube.state_dir
    assert state_dir is not None
    pid = lifecycle.status(state_dir).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until("the control plane is dead", lambda: not lifecycle.status(state_dir).is_running)
    lifecycle.up(kube.state_dir)
    kube.release("sweep-killed")
    end = wait_phase(kube, "killed", "Succeeded")
    assert end["experiments"] == {"total": 2, "pending": 0, "running": 0, "succeeded": 2, "failed": 0}
    stages = started(kube, "killed")
    assert stages.pop("sft") == 2
    assert stages == dict.fromkeys(stages, 1)
