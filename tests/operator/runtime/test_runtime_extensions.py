"""A stage of another distribution is known wherever a stage is: to the API, the planner, the renderer, the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.builders import raw_spec
from support.extensions import install, python_path
from support.patience import LIMIT_S

from wrpo_engine import __version__

ROOT = Path(__file__).resolve().parents[3]
PROBE = ROOT / "tests" / "support" / "extension_probe.py"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    spec = raw_spec(
        resources={"shout": {"limits": {"cpu": 2}}},
        deadlines={"stages": {"shout": {"activeSeconds": 99}}},
        reward={"model": None, "endpoint": "http://reward", "apiKeySecretRef": {"name": "reward", "key": "key"}},
    )
    ran = subprocess.run(
        [sys.executable, str(PROBE), json.dumps(spec)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path(install(tmp_path_factory.mktemp("shout")), ROOT / "tests")},
        check=False,
        timeout=LIMIT_S,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_a_foreign_stage_is_part_of_the_graph_and_of_the_report(known: dict[str, Any]) -> None:
    assert known["order"][0] == "prepare"
    assert known["order"][-2:] == ["shout", "report"]
    assert known["inputs"] == {"prompts": "prepare"}
    assert known["in the report"]
    assert (known["column"], known["key metrics"]) == (1, ["loudness"])


def test_a_foreign_stage_gets_the_child_that_its_definition_says(known: dict[str, Any]) -> None:
    assert known["completion mode"] == "Indexed"
    assert known["command"] == ["wrpo-engine", "shout", "--config", "/etc/wrpo/stage.json"]
    assert known["image"] == f"wrpo/sampler:{__version__}"
    assert known["resources"] == {"limits": {"cpu": "2"}}
    assert known["has the reward's key"]


def test_a_foreign_stage_has_deadlines_and_a_place_in_the_crd(known: dict[str, Any]) -> None:
    assert known["deadline"] == [99, "spec.deadlines.stages.shout.activeSeconds"]
    assert known["crd"] == ["The pods that shout.", "Shouting."]


def test_a_foreign_stage_is_in_the_generated_lists_and_in_settings(known: dict[str, Any]) -> None:
    assert known["row"] == ["| `shout` | Indexed Job | sampler | `shout` | the SFT prompts in capitals |"]
    assert known["stand-in"] == ["shout"]
    assert known["metrics"] == "shout"
