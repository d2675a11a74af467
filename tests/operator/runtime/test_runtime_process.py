"""The process: its logs, and who may import what."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import wrpo_operator
from wrpo_operator.runtime.log import JsonFormatter, KopfNoise, bind

PACKAGE = Path(wrpo_operator.__file__).parent


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
