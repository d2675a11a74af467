"""The support matrix names the versions that the tests install."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MATRIX = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line)


def test_every_package_of_the_support_matrix_has_its_pinned_version() -> None:
    named = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (\S+) \|", MATRIX, re.MULTILINE))
    assert len(named) >= 8
    assert named == {name: pins()[name] for name in named}


def test_the_minimum_of_kubernetes_is_the_charts() -> None:
    chart = (ROOT / "charts" / "wrpo-operator" / "Chart.yaml").read_text(encoding="utf-8")
    minimum = re.findall(r'^kubeVersion: ">=(\d+\.\d+)\.0', chart, re.MULTILINE)
    assert re.findall(r"^\| Kubernetes API \| (\S+) \(minimum\) \|", MATRIX, re.MULTILINE) == minimum
