"""Rendering the chart with the real helm."""

from __future__ import annotations

import functools
import subprocess
from typing import Any

import pytest
import yaml

from wrpo_operator.cli.install import find_chart, find_tool

JsonObject = dict[str, Any]
CHART = find_chart()
ROOT = CHART.parents[1]


@functools.cache
def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        tool = find_tool("helm")
    except Exception as error:  # noqa: BLE001
        pytest.skip(str(error))
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)


def render(*settings: str, namespace: str = "wrpo-system", flags: tuple[str, ...] = ()) -> list[JsonObject]:
    """Return the objects of the chart; `settings` are --set-json."""
    values = [part for setting in settings for part in ("--set-json", setting)]
    done = helm("template", "wrpo", str(CHART), "-n", namespace, *flags, *values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def refused(*settings: str, flags: tuple[str, ...] = ()) -> str:
    """Return why helm does not render."""
    values = [part for setting in settings for part in ("--set-json", setting)]
    done = helm("template", "wrpo", str(CHART), *flags, *values)
    assert done.returncode != 0
    return done.stderr


def one(objects: list[JsonObject], kind: str, name: str = "wrpo-operator") -> JsonObject:
    (found,) = [obj for obj in objects if obj["kind"] == kind and obj["metadata"]["name"] == name]
    return found
