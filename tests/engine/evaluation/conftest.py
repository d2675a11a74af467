"""Artifacts of cells for the evaluate stage."""

from __future__ import annotations

import pytest
from evaluation_support import Cells, Commit


@pytest.fixture
def cells(commit_artifact: Commit) -> Cells:
    return Cells(commit_artifact)
