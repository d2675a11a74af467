"""The benchmark of orchestration divides the time of stages by the objects and logs of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks.orchestration import __main__ as orchestration
from wrpo_engine.process.moments import ENGINE_STARTED, LOADED
from wrpo_operator.api.names import LABEL_EXPERIMENT, LABEL_STAGE


def at(second: float) -> str:
    whole = f"2026-01-02T00:{int(second) // 60:02d}:{int(second) % 60:02d}"
    return f"{whole}Z" if second == int(second) else f"{whole}.{round(second % 1 * 1e9):09d}Z"


def labels(stage: str) -> dict[str, str]:
    return {LABEL_EXPERIMENT: "quickstart", LABEL_STAGE: stage}


def child(stage: str, created: int) -> dict[str, Any]:
    return {"metadata": {"labels": labels(stage), "creationTimestamp": at(created)}}


def pod(name: str, stage: str, started: int, ended: int, code: int = 0) -> dict[str, Any]:
    state = {"terminated": {"startedAt": at(started), "finishedAt": at(ended), "exitCode": code}}
    return {"metadata": {"name": name, "labels": labels(stage)}, "status": {"containerStatuses": [{"state": state}]}}


CHILDREN = [child("prepare", 0), child("sample-a", 10), child("sample-b", 10), child("train", 43)]
PODS = [
    pod("p", "prepare", 2, 8),
    pod("a0", "sample-a", 11, 30),
    pod("a1", "sample-a", 12, 40),
    pod("b", "sample-b", 11, 20),
    pod("t-failed", "train", 44, 45, code=1),
    pod("t", "train", 46, 60),
    {"metadata": {"name": "waits", "labels": labels("train")}, "status": {}},
]
LOGS = {
    "p": f"{at(3.5)} default/quickstart: writing\n{at(5.25)} {LOADED}\n",
    "a0": f"{at(13)} {LOADED}\n",
    "a1": f"{at(14)} {LOADED}\n{at(24)} {ENGINE_STARTED}\n{at(30)} {LOADED}\n",
}


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A cluster with these objects, in which `saved` collects what is written."""
    found: list[dict[str, Any]] = []

    def kubectl(_tool: str, *words: str, kubeconfig: Path) -> str:
        assert kubeconfig == Path("config")
        if "logs" in words:
            if words[3] not in {"p", "a0", "a1", "b", "t"}:
                raise click.ClickException("it is waiting to start: ContainerCreating")
            return LOGS.get(words[3], "")
        if f"{LABEL_EXPERIMENT}=quickstart" not in words:
            return json.dumps({"items": []})
        return json.dumps({"items": PODS if "pods" in words else CHILDREN})

    monkeypatch.setattr(orchestration, "run_tool", kubectl)
    monkeypatch.setattr(orchestration, "save_result", lambda _name, _machine, measured: found.append(dict(measured)))
    return found


def test_the_parts_of_each_stage_add_up_to_its_time(saved: list[dict[str, Any]]) -> None:
    assert orchestration.main(["--kubeconfig", "config"]) == 0
    parts = {stage["stage"]: [stage[part] for part in orchestration.PARTS] for stage in saved[0]["stages"]}
    assert parts == {
        # From creation: pod, start and imports, engine, own work, next stage.
        "prepare": [2, 3.25, 0, 2.75, 2],
        # The shard that ended last decides; nothing else ran between its end at 40 and the creation at 43.
        "sample-a": [1, 3, 10, 16, 3],
        # sample-a runs on, so what follows does not wait for this one.
        "sample-b": [1, 0, 0, 9, 0],
        "train": [3, 0, 0, 14, 0],
    }
    assert [stage["pods"] for stage in saved[0]["stages"]] == [1, 2, 1, 1]
    # 0 to 2, 8 to 11, 40 to 46.
    assert (saved[0]["wall"], saved[0]["idle"]) == (60, 11)
    (table,) = orchestration.tables(saved[0])
    assert table.rows[-1] == ["sum", "5", "7.0", "6.2", "10.0", "41.8", "5.0"]
    assert table.notes[0].startswith("Sum 70 s, of it 40 % not own work; wall time 60 s,")


def test_an_experiment_that_has_not_run_is_an_error(
    saved: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert orchestration.main(["--kubeconfig", "config", "--experiment", "other"]) == 1
    assert "other has no pod that ended well" in capsys.readouterr().out
    assert saved == []
