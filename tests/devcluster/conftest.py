"""Fixtures that keep other clusters out of the tests of the embedded control plane."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("WRPO_E2E_CLUSTER") != "1":
        return
    skip = pytest.mark.skip(
        reason="tests the embedded control plane itself; WRPO_E2E_CLUSTER=1 asks for another cluster"
    )
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("cluster"):
            item.add_marker(skip)
