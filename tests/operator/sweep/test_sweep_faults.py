"""Every call of a whole sweep fails or is the operator's last; the end is the same, and equal stages run once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from support.builders import raw_spec
from support.fault_cluster import NAMESPACE, Fault, FaultyClient, Server, drive, labels_of, name_of

from wrpo_operator.api import names
from wrpo_operator.runtime.resources import EXPERIMENTS, SWEEPS, JsonObject

NAME = "paper"
SHORT: Mapping[str, Any] = {
    "sources": [{"name": "a", "model": "org/a"}],
    "sft": {"enabled": False},
    "evaluation": {"enabled": False},
    "report": {"enabled": False},
    "modelCache": {"enabled": False},
    "retries": {"limit": 1, "backoffSeconds": 1},
}
VARIANTS = [
    {"name": "dpo", "set": {"training.objective": "DPO"}},
    {"name": "ipo", "set": {"training.objective": "IPO"}},
]


def sweep(**changes: Any) -> JsonObject:
    spec = {"experiment": raw_spec(**SHORT), "variants": VARIANTS, "parallelExperiments": 1, **changes}
    return {"metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": spec}


def status(server: Server) -> JsonObject:
    found: JsonObject = server.objects[SWEEPS, NAMESPACE, NAME].get("status") or {}
    return found


def phases(server: Server) -> dict[str, str]:
    return {row["name"]: row["phase"] for row in status(server).get("variants") or ()}


def experiments(server: Server) -> list[str]:
    return sorted(name for kind, _, name in server.objects if kind == EXPERIMENTS)


def end_of(server: Server) -> JsonObject:
    """Return all that must not depend on what went wrong; which experiment computes a shared stage may."""
    told = [(c["type"], c["status"], c["reason"], c["message"]) for c in status(server)["conditions"]]
    return {
        "phases": phases(server),
        "conditions": told,
        "counts": status(server)["experiments"],
        "experiments": {name: server.status(name)["phase"] for name in experiments(server)},
        "runs": dict(server.runs),
    }


def world(**changes: Any) -> Server:
    server = Server()
    server.put(SWEEPS, sweep(**changes))
    return server


def run(server: Server, faults: Mapping[int, Fault], **more: Any) -> FaultyClient:
    def finished() -> bool:
        return status(server).get("phase") in {"Succeeded", "Failed"}

    return asyncio.run(drive(server, faults, finished=finished, **more))


def fails_with_ipo(child: JsonObject) -> int:
    return 65 if "-ipo-" in name_of(child) and "-train-" in name_of(child) else 0


def scenario(title: str) -> Server:
    server = world()
    if title == "one variant fails":
        server.exit_codes = fails_with_ipo
    return server


TITLES = ("all goes well", "one variant fails")


@cache
def undisturbed(title: str) -> tuple[JsonObject, int]:
    server = scenario(title)
    client = run(server, {})
    return end_of(server), len(client.calls)


def test_undisturbed_equal_stages_run_once_and_each_variant_trains_once() -> None:
    server = world()
    run(server, {})
    assert phases(server) == {"dpo": "Succeeded", "ipo": "Succeeded"}
    stages = Counter(
        labels_of(child)[names.LABEL_STAGE]
        for _, child in server.children()
        for _ in range(server.made[name_of(child)])
    )
    shared = {stage: number for stage, number in stages.items() if stage != "train"}
    assert max(server.runs.values()) == 1
    assert stages["train"] == 2
    assert shared == dict.fromkeys(shared, 1)


def test_experiments_that_run_together_wait_for_the_stage_that_another_computes() -> None:
    server = world(parallelExperiments=2)
    run(server, {})
    assert phases(server) == {"dpo": "Succeeded", "ipo": "Succeeded"}
    assert max(server.runs.values()) == 1


def test_a_failed_variant_fails_alone_and_its_row_has_the_reason() -> None:
    server = scenario("one variant fails")
    run(server, {})
    assert phases(server) == {"dpo": "Succeeded", "ipo": "Failed"}
    row = status(server)["variants"][1]
    assert "stage train failed" in row["message"].lower()
    assert "It broke." in row["message"]
    assert status(server)["experiments"] == {"total": 2, "pending": 0, "running": 0, "succeeded": 1, "failed": 1}
    failed = next(c for c in status(server)["conditions"] if c["type"] == "Failed")
    assert failed["message"].startswith("Failed: ipo. 1 experiments succeeded.")


@pytest.mark.parametrize("kind", ["crash before", "crash after"])
@pytest.mark.parametrize("title", TITLES)
def test_an_operator_that_is_killed_at_any_call_ends_with_the_same_sweep(title: str, kind: Any) -> None:
    expected, calls = undisturbed(title)
    for number in range(0, calls, 2):
        server = scenario(title)
        run(server, {number: Fault(kind)})
        assert end_of(server) == expected, number


@pytest.mark.parametrize("code", [0, 409, 410, 429, 500])
def test_an_error_at_any_call_changes_nothing(code: int) -> None:
    expected, calls = undisturbed("all goes well")
    for number in range(code % 3, calls, 4):
        server = scenario("all goes well")
        run(server, {number: Fault("error", code)})
        assert end_of(server) == expected, number


def test_a_lost_answer_at_any_call_changes_nothing() -> None:
    expected, calls = undisturbed("all goes well")
    for number in range(0, calls, 2):
        server = scenario("all goes well")
        run(server, {number: Fault("lost answer")})
        assert end_of(server) == expected, number


@pytest.mark.parametrize("behind", [1, 4, 30])
def test_watches_that_lag_behind_change_nothing(behind: int) -> None:
    expected, _ = undisturbed("all goes well")
    server = scenario("all goes well")
    run(server, {}, lag=lambda number: behind if number % 4 else 0)
    assert end_of(server) == expected


def test_a_clock_that_differs_changes_nothing() -> None:
    expected, _ = undisturbed("all goes well")
    server = scenario("all goes well")
    run(server, {}, skew=timedelta(seconds=60))
    assert end_of(server) == expected
