"""The process: its flags, its logs, and who may import what."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

import wrpo_operator
from wrpo_operator.__main__ import main, run, settings_of
from wrpo_operator.runtime.log import JsonFormatter, KopfNoise, bind
from wrpo_operator.runtime.settings import default_identity

PACKAGE = Path(wrpo_operator.__file__).parent
BAD_FLAGS = {
    "a namespace": (["--namespace", "Team A"], "--namespace is 'Team A', which is no namespace name."),
    "stand-ins": (["--stage-commands", "{"], "stage commands are not JSON"),
    "a port": (["--health-port", "70000"], "70000 is not in the range"),
    "no credentials": (["--kubeconfig", "/nowhere"], "cannot read cluster credentials from /nowhere"),
}


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS.values(), ids=BAD_FLAGS.keys())
def test_a_bad_flag_is_named_and_nothing_starts(flags: list[str], words: str) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        result = CliRunner().invoke(main, ["run", *flags], env={"KUBECONFIG": "/nowhere"})
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert result.exit_code != 0
    assert words in " ".join(result.output.split())


def test_defaults_watch_the_whole_cluster_on_loopback() -> None:
    context = run.make_context("run", [])
    settings = settings_of(context.params)
    assert (settings.namespace, settings.own_namespace, settings.bind) == (None, "default", "127.0.0.1")
    assert (settings.render.service_account, settings.render.progress_url) == ("wrpo-stage", None)
    assert settings.manage_service_account is True


def test_the_identity_is_the_pods_name_or_names_host_and_process() -> None:
    assert default_identity({"POD_NAME": "wrpo-operator-abc"}) == "wrpo-operator-abc"
    assert default_identity({}).rpartition("-")[2].isdecimal()


def test_a_log_line_carries_experiment_stage_and_attempt() -> None:
    bind(experiment="ns/fusion")
    record = logging.makeLogRecord({"name": "wrpo", "levelname": "INFO", "msg": "started %s", "args": ("train",)})
    record.stage, record.attempt = "train", 2
    line = json.loads(JsonFormatter().format(record))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "wrpo",
        "message": "started train",
        "experiment": "ns/fusion",
        "stage": "train",
        "attempt": 2,
    }


def test_what_kopf_tries_again_is_not_logged_as_an_error() -> None:
    def passes(message: str) -> bool:
        return KopfNoise().filter(logging.makeLogRecord({"msg": message}))

    assert not passes("Request attempt #1/5 failed; will retry: GET /x -> y")
    assert passes("Request attempt #5/5 failed; escalating: GET /x -> y")


ONLY_IMPORTERS = {"kubernetes": "runtime/kube.py", "kopf": "runtime/watching.py"}


@pytest.mark.parametrize(("library", "place"), ONLY_IMPORTERS.items(), ids=ONLY_IMPORTERS.keys())
def test_one_module_alone_imports_the_library(library: str, place: str) -> None:
    importers = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(
            line.startswith((f"import {library}", f"from {library}")) for line in path.read_text("utf-8").splitlines()
        )
    ]
    assert importers == [place]
