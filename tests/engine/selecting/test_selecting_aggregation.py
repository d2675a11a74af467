"""Aggregation of comparisons gives the numbers of the released code, and obeys its laws for all matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wrpo_engine.selecting import aggregation
from wrpo_engine.selecting.aggregation import best_of, bubble, max_logits, max_wins, max_wins_as_released, ranks_of

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "comparisons" / "llm_blender.json").read_text()
)
MATRICES = [np.array(matrix) for matrix in GOLDEN["aggregation"]["matrices"]]


@pytest.mark.parametrize("number", range(len(MATRICES)))
def test_max_logits_gives_the_released_scores_ranks_and_choice(number: int) -> None:
    golden = GOLDEN["aggregation"]["max_logits"]
    scores = max_logits(MATRICES[number])
    assert scores == pytest.approx(golden["scores"][number], abs=1e-7)
    assert ranks_of(scores) == golden["ranks"][number]
    assert best_of(scores) == golden["top1"][number]


@pytest.mark.parametrize("number", range(len(MATRICES)))
def test_max_wins_gives_the_released_scores_ranks_and_choice(number: int) -> None:
    golden = GOLDEN["aggregation"]["max_wins"]
    assert max_wins_as_released(MATRICES[number]) == pytest.approx(golden["scores"][number], abs=1e-7)
    assert ranks_of(max_wins(MATRICES[number])) == golden["ranks"][number]
    assert best_of(max_wins(MATRICES[number])) == golden["top1"][number]


@pytest.mark.parametrize(("scores", "ranks"), GOLDEN["aggregation"]["ranks_from_scores"])
def test_equal_scores_share_the_better_rank(scores: list[float], ranks: list[int]) -> None:
    assert ranks_of(scores) == ranks


@pytest.mark.parametrize("trace", GOLDEN["bubble"], ids=lambda trace: f"{trace['matrix']}-{trace['order']}")
def test_one_pass_of_bubble_keeps_the_released_winners(trace: dict[str, Any]) -> None:
    winners = bubble(MATRICES[trace["matrix"]], trace["order"])
    assert winners == trace["better"]
    assert winners[-1] == trace["best"]


@pytest.mark.parametrize("name", ["max_logits", "max_wins"])
def test_scores_follow_the_candidates_whatever_their_order(name: str) -> None:
    function = getattr(aggregation, name)
    generator = np.random.default_rng(1)
    for size in (2, 3, 7, 11):
        logits = generator.normal(size=(size, size))
        np.fill_diagonal(logits, 0)
        order = generator.permutation(size)
        assert function(logits[np.ix_(order, order)]) == pytest.approx(function(logits)[order])


def test_a_ranker_that_prefers_a_side_changes_no_score_by_max_logits() -> None:
    logits = np.random.default_rng(2).normal(size=(6, 6))
    np.fill_diagonal(logits, 0)
    biased = logits + 5 * (1 - np.eye(6))
    assert max_logits(biased) == pytest.approx(max_logits(logits))


def test_a_candidate_that_beats_all_others_is_chosen_by_each_policy() -> None:
    generator = np.random.default_rng(3)
    for size in (2, 5, 9):
        strength = generator.permutation(size).astype(float)
        logits = strength[:, None] - strength[None, :]
        best = int(strength.argmax())
        order = generator.permutation(size).tolist()
        assert [best_of(max_logits(logits)), best_of(max_wins(logits)), bubble(logits, order)[-1]] == [best] * 3


def test_of_equal_candidates_the_first_is_chosen() -> None:
    assert best_of(max_logits(np.zeros((4, 4)))) == 0
    assert best_of(max_wins(np.zeros((4, 4)))) == 0
