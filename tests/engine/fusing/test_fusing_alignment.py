"""Alignment of tokens and vocabularies: handed values, laws, and the naive forms they must equal."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from wrpo_engine.fusing.dtw import Preference, warp
from wrpo_engine.fusing.vocabulary import (
    UNMAPPED,
    Kind,
    edit_map,
    exact_map,
    first_token_ids,
    statistics_map,
    with_statistics,
)

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "comparisons"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def texts(tokens: list[str], marker: str) -> list[str]:
    return [token.replace(marker, " ") for token in tokens]


def bare(tokens: list[str]) -> list[str]:
    return [token.replace("\u0120", "").replace("\u2581", "") for token in tokens]


CASES = [(name, case) for name in ("fusellm", "fusechat") for case in golden(name)["dtw"]]
PREFERENCES = {"fusellm": Preference.UP_FIRST, "fusechat": Preference.LEFT_FIRST}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_warpings_of_the_original_code_are_met(name: str, case: dict[str, Any]) -> None:
    found = warp(bare(case["blending"]), bare(case["base"]), preference=PREFERENCES[name])
    assert [list(match) for match in found.matches] == case["matches"]
    assert found.cost == case["cost"]
    assert found.target_to_source(len(case["base"])) == case["base_to_blending"]
    if "blending_to_base" in case:
        assert found.source_to_target(len(case["blending"])) == case["blending_to_base"]


def test_equal_predecessors_are_taken_in_the_order_of_the_original() -> None:
    """Worked by hand: D = [[1, 1, 2], [1, 2, 1], [2, 1, 2]]. Both neighbours of the end cost 1, its diagonal 2."""
    source, target = ["a", "b", "a"], ["b", "a", "b"]
    upwards = warp(source, target, preference=Preference.UP_FIRST)
    leftwards = warp(source, target, preference=Preference.LEFT_FIRST)
    assert upwards.matches == [(0, 0), (0, 1), (1, 2), (2, 2)]
    assert leftwards.matches == [(0, 0), (1, 0), (2, 1), (2, 2)]
    assert upwards.cost == leftwards.cost == 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("abc ", min_size=1, max_size=4), min_size=1, max_size=60),
    st.lists(st.text("abc ", min_size=1, max_size=4), min_size=1, max_size=60),
    st.sampled_from(list(Preference)),
)
def test_a_warping_is_a_monotone_path_of_least_cost(
    source: list[str], target: list[str], preference: Preference
) -> None:
    found = warp(source, target, preference=preference)
    assert (found.matches[0], found.matches[-1]) == ((0, 0), (len(source) - 1, len(target) - 1))
    steps = {
        (one[0] - before[0], one[1] - before[1]) for before, one in zip(found.matches, found.matches[1:], strict=False)
    }
    assert steps <= {(1, 1), (1, 0), (0, 1)}
    assert found.cost == naive_cost(source, target)


def naive_cost(source: list[str], target: list[str]) -> float:
    table = np.full((len(source) + 1, len(target) + 1), np.inf)
    table[0, 0] = 0
    for row, left in enumerate(source):
        for column, right in enumerate(target):
            before = min(table[row, column + 1], table[row + 1, column], table[row, column])
            table[row + 1, column + 1] = Levenshtein.distance(left, right) + before
    return float(table[-1, -1])


def split(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(bounds)]


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(list(Preference)))
def test_a_band_gives_the_path_of_the_full_matrix(random: Any, preference: Preference) -> None:
    """Two ways to cut one text, up to several times the band's width."""
    text = "".join(random.choices("abcde", k=random.randint(80, 700)))
    source, target = (split(text, random.sample(range(len(text)), len(text) // size)) for size in (3, 4))
    whole = warp(source, target, band=1.0, preference=preference)
    assert warp(source, target, band=0.01, preference=preference) == whole


def test_a_sequence_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^both sequences need tokens; got 0 and 1$"):
        warp([], ["a"])


def vocabularies(name: str) -> tuple[list[str], list[str], dict[str, Any]]:
    """The source's and the target's texts."""
    tokenizers = golden(name)["tokenizers"]
    return (
        texts(tokenizers["blending_vocab"], tokenizers["blending_space"]),
        texts(tokenizers["base_vocab"], tokenizers["base_space"]),
        tokenizers,
    )


def test_the_vocabulary_map_of_fusellm_is_met() -> None:
    source, target, tokenizers = vocabularies("fusellm")
    found = edit_map(source, target)
    named = {
        token.replace(tokenizers["blending_space"], tokenizers["base_space"]): tokenizers["base_vocab"][index]
        for token, index in zip(tokenizers["blending_vocab"], found.target_ids, strict=True)
    }
    assert named == golden("fusellm")["vocab_mapping"]
    assert found.kinds[0] is Kind.EDIT
    assert found.kinds[1] is Kind.EXACT


def test_the_statistics_of_fusechat_are_met() -> None:
    source, target, _ = vocabularies("fusechat")
    case = golden("fusechat")["mapping_statistics"]
    counts = [(one, other, count) for one, row in enumerate(case["counts"]) for other, count in enumerate(row)]
    found = statistics_map(counts, target, source, by="Sigmoid")
    unmapped = case["unmapped_goes_to"]
    assert [found.get(one, unmapped) for one in range(len(target))] == case["base_to_blending"]


def test_the_source_to_target_map_of_fusechat_is_met() -> None:
    source, target, _ = vocabularies("fusechat")
    counts = [
        (other, one, count)
        for one, row in enumerate(golden("fusechat")["mapping_statistics"]["counts"])
        for other, count in enumerate(row)
    ]
    ends = {len(source) - 1: len(target) - 1}
    by_distance = edit_map([*source[:-1], None], [*target[:-1], None]).replaced(ends)
    assert by_distance.target_ids.tolist() == golden("fusechat")["blending_to_base"]
    pairs = statistics_map(counts, source, target, by="Sigmoid")
    assert (
        with_statistics(by_distance, pairs, source, target).target_ids.tolist()
        == golden("fusechat")["blending_to_base"]
    )


def test_statistics_penalise_frequent_pairs_as_released_unless_counts_decide() -> None:
    counts = [(0, 0, 1.0), (0, 1, 50.0)]
    first, second = ["abc"], ["abd", "abe"]
    assert statistics_map(counts, first, second, by="Sigmoid") == {0: 0}
    assert statistics_map(counts, first, second, by="Count") == {0: 1}
    assert statistics_map([(0, 0, 0.0)], first, second, by="Count") == {}


words = st.text("abcd ", min_size=0, max_size=7)


@settings(max_examples=150, deadline=None)
@given(st.lists(words | st.none(), max_size=12), st.lists(words | st.none(), max_size=25))
def test_every_token_goes_to_the_first_nearest_one(source: list[str | None], target: list[str | None]) -> None:
    found = edit_map(source, target)
    candidates = [(index, text) for index, text in enumerate(target) if text is not None]
    for index, text in enumerate(source):
        if text is None or not candidates:
            assert found.target_ids[index] == UNMAPPED
            continue
        distances = [(Levenshtein.distance(text, other), place) for place, other in candidates]
        assert (found.distances[index], found.target_ids[index]) == min(distances)
        assert (found.kinds[index] is Kind.EXACT) == (min(distances)[0] == 0)


@given(st.lists(words, min_size=1, max_size=20, unique=True))
def test_the_map_of_a_vocabulary_to_itself_is_the_identity(tokens: list[str]) -> None:
    for found in (exact_map(tokens, tokens), edit_map(tokens, tokens)):
        assert found.target_ids.tolist() == list(range(len(tokens)))
        assert found.num_exact == len(tokens)


def test_the_first_token_of_a_text_loses_or_gets_the_blank_that_one_tokenizer_writes() -> None:
    source, target = [" the", "the", " x", None], ["the", " the", "x"]
    less, more = first_token_ids(exact_map(source, target), source, target)
    assert less.tolist() == [0, UNMAPPED, 2, UNMAPPED]
    assert more.tolist() == [UNMAPPED, 1, UNMAPPED, UNMAPPED]


def test_exact_maps_leave_other_tokens_out() -> None:
    found = exact_map(["a", "b", None], [None, "a", "a"])
    assert found.target_ids.tolist() == [1, UNMAPPED, UNMAPPED]
    assert found.kinds == (Kind.EXACT, None, None)
