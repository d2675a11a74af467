"""`wrpo compare` finds the evaluations of experiments and hands them to the engine."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest
from click.testing import CliRunner

from wrpo_engine.comparison.command import command as engine_command
from wrpo_operator.cli.compare import gather, parse_systems
from wrpo_operator.cli.connect import Target
from wrpo_operator.cli.main import main

JsonObject = dict[str, Any]
CLUSTER = Target("k", None, "ns")


def experiment(name: str, *, state: str = "Succeeded", gpu_seconds: int = 0, volume: bool = False) -> JsonObject:
    storage = {"volume": {"claimName": "data"}} if volume else {"s3": {"uri": "s3://bucket/prefix"}}
    evaluate = {"name": "evaluate", "state": state, "hash": "0" * 16, "gpuSeconds": gpu_seconds}
    if state == "Succeeded":
        evaluate["artifact"] = f"evaluate/{name[-1] * 16}"
    train = {"name": "train", "state": "Succeeded", "hash": "1" * 16, "gpuSeconds": gpu_seconds}
    return {
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"storage": storage},
        "status": {"phase": "Running", "stages": [train, evaluate]},
    }


def test_systems_are_experiments_or_runs_of_one_name() -> None:
    assert parse_systems(["dpo", "wrpo=a,b"]) == {"dpo": ["dpo"], "wrpo": ["a", "b"]}
    for wrong in ("=a", "dpo=", "dpo=a,,b"):
        with pytest.raises(click.UsageError, match="is no system: write EXPERIMENT or NAME=EXPERIMENT"):
            parse_systems([wrong])


def test_the_engine_gets_the_evaluations_and_the_mean_cost_of_a_run() -> None:
    known = {name: experiment(name, gpu_seconds=100 * int(name[-1], 16)) for name in ("run-1", "run-3", "run-0")}
    arguments, seconds = gather({"wrpo": ["run-1", "run-3"], "dpo": ["run-0"]}, known, CLUSTER)
    prefix = "s3://bucket/prefix/evaluate"
    assert arguments == [f"wrpo={prefix}/{'1' * 16},{prefix}/{'3' * 16}", f"dpo={prefix}/{'0' * 16}"]
    assert seconds == {"wrpo": 400.0}


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"b": experiment("b")}, "there is no experiment a in namespace ns; it has b."),
        ({}, "it has none."),
        ({"a": experiment("a", state="Running")}, "a cannot be compared yet: stage evaluate is Running."),
        ({"a": experiment("a", volume=True)}, "the evaluation of a is on a volume that is not mounted here"),
        (
            {"a": {"metadata": {"name": "a"}, "spec": {}, "status": {}}},
            r"stage evaluate is not part of it \(spec\.evaluation\.enabled\)",
        ),
    ],
)
def test_an_experiment_without_a_readable_evaluation_is_refused_with_the_reason(
    known: dict[str, JsonObject], message: str
) -> None:
    with pytest.raises(click.ClickException, match=message):
        gather({"a": ["a"]}, known, CLUSTER)


def test_the_help_names_the_options_that_both_commands_have() -> None:
    shown = set(re.findall(r"--[a-z-]+", CliRunner().invoke(main, ["compare", "--help"]).output))
    own = {name for each in engine_command.params for name in each.opts if name.startswith("--")}
    assert own - shown == {"--storage", "--gpu-seconds", "--seed", "--resamples"}
