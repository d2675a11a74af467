"""What holds for every test."""

from __future__ import annotations

import os
from pathlib import Path

if os.environ.get("PYTEST_XDIST_WORKER"):
    # No fewer workers than cores: threads of their own would only wait for each other. Read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# Timing never decides a test: a busy machine draws examples slowly. Nor does chance: the same code draws the same
# examples everywhere, unless new ones are wanted.
settings.register_profile(
    "wrpo",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("WRPO_NEW_EXAMPLES"),
)
settings.load_profile("wrpo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules with slow and cluster tests first: a worker that begins one of them last keeps the others waiting.

    They alternate, because cluster tests mostly wait and slow ones mostly compute.
    """
    places: dict[Path, int] = {}
    for marker in ("cluster", "slow"):
        modules = dict.fromkeys(item.path for item in items if item.get_closest_marker(marker))
        for place, module in enumerate(modules):
            places.setdefault(module, place)
    end = len(items)
    items.sort(key=lambda item: (places[item.path], str(item.path)) if item.path in places else (end, ""))
