"""Rank, select and grade, killed (SIGKILL) at every point of their commits: the next attempt leaves the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cells import commit_cells
from kill_points import states_after_kills
from pairrm_models import save_pairrm

from wrpo_engine.artifacts.manifest import MANIFEST_NAME
from wrpo_engine.artifacts.parts import PARTS
from wrpo_engine.stage import load_stage

TURNS = {"q1": ["hi"], "q2": ["one?", "and two?"], "q3": ["long"]}
MEMBERS: dict[str, Any] = {
    "answers/a--b": {"q1": "yo", "q2": ["won", "too"], "q3": "x"},
    "answers/c--b": {"q1": "hello", "q2": ["1", "2"], "q3": None},
}
STAGES: dict[str, tuple[dict[str, Any], int]] = {
    "rank": ({"members": list(MEMBERS), "prompts_per_part": 1}, 3),
    "select": ({"by": "Random", "members": list(MEMBERS), "criteria": []}, 1),
    "grade": ({"answers": "answers/a--b", "rows_per_part": 2}, 2),
}
"""Parameters and number of parts, by kind."""


@pytest.fixture
def models(tmp_path: Path, tiny_reward_dir: Path) -> dict[str, Any]:
    save_pairrm(tmp_path / "pairrm")
    return {"rank": {"ranker": {"name": str(tmp_path / "pairrm")}}, "grade": {"reward": {"name": str(tiny_reward_dir)}}}


def content(directory: Path) -> dict[str, bytes]:
    """The bytes of each file. What a killed attempt was writing stays for an hour, and is no part of the artifact."""
    files = [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".tmp-")]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_killed_at_any_point_goes_on_and_leaves_the_same_bytes(
    kind: str,
    make_ctx: Any,
    commit_artifact: Any,
    models: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = commit_cells(commit_artifact, TURNS, MEMBERS)
    given, num_parts = STAGES[kind]
    params = {"stage": kind, **given, **models.get(kind, {})}
    run = load_stage(kind)
    ctx = make_ctx(params, inputs, stage=f"{kind}/a--b")
    directory = ctx.output.directory
    states = states_after_kills(monkeypatch, directory, tmp_path / "states", lambda: run(ctx))
    whole = content(directory)
    rows = {entry.name: entry.rows for entry in ctx.output.committed().manifest.files}
    assert len(rows) == num_parts
    found = set()
    for state in states:
        shutil.rmtree(directory)
        shutil.copytree(state, directory)
        resumed = make_ctx(params, inputs, stage=f"{kind}/a--b")
        published = resumed.output.published(PARTS)
        found.add((len(published), resumed.output.committed() is not None))
        if resumed.output.committed() is None:
            # Nothing that was published is computed again.
            assert run(resumed).rows == sum(rows[name] for name in rows if name not in published)
        assert content(directory) == whole
    assert MANIFEST_NAME in whole
    assert found == {*((count, False) for count in range(num_parts + 1)), (num_parts, True)}
