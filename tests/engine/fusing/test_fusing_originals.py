"""Random cases against FuseLLM's and FuseChat's algorithms, written here as plainly as their authors describe them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from wrpo_engine.fusing.distributions import EMPTY, average_weights, averaged, least
from wrpo_engine.fusing.dtw import Preference
from wrpo_engine.fusing.positions import NONE, Matching, Tokens, by_warping
from wrpo_engine.fusing.vocabulary import edit_map, statistics_map

Array = np.ndarray[Any, Any]
SEEDS = range(25)
ALPHABET = list("abc")


def random_texts(generator: np.random.Generator, count: int, *, unique: bool = False) -> list[str]:
    texts = ["".join(generator.choice(ALPHABET, size=generator.integers(1, 5))) for _ in range(count)]
    return list(dict.fromkeys(texts)) if unique else texts


def original_matches(source: Sequence[str], target: Sequence[str], *, up_first: bool) -> list[tuple[int, int]]:
    """Dynamic time warping with the whole table; back to the predecessor of least D, the diagonal one first."""
    n, m = len(source), len(target)
    table = np.full((n + 1, m + 1), math.inf)
    table[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            best = min(table[i - 1, j], table[i, j - 1], table[i - 1, j - 1])
            table[i, j] = Levenshtein.distance(source[i - 1], target[j - 1]) + best
    i, j = n, m
    matches = [(n - 1, m - 1)]
    while (i, j) != (1, 1):
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)] if up_first else [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        i, j = min(steps, key=lambda step: table[step])
        matches.append((i - 1, j - 1))
    return matches[::-1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("preference", Preference)
def test_aligned_tokens_are_those_of_the_original_rules(preference: Preference, seed: int) -> None:
    generator = np.random.default_rng(seed)
    vocabularies = [random_texts(generator, 12, unique=True) for _ in range(2)]
    ids = [generator.integers(len(vocabulary), size=generator.integers(1, 14)) for vocabulary in vocabularies]
    source, target = ([texts[place] for place in row] for texts, row in zip(vocabularies, ids, strict=True))
    to_target = edit_map(*vocabularies)
    matched: list[list[int]] = [[] for _ in target]
    for one, other in original_matches(source, target, up_first=preference is Preference.UP_FIRST):
        matched[other].append(one)
    expected: dict[str, list[int]] = {"EM": [], "MinED": [], "MS": []}
    for place, found in enumerate(matched):
        equal = len(found) == 1 and source[found[0]] == target[place]
        soft = len(found) == 1 and to_target.target_ids[ids[0][found[0]]] == ids[1][place]
        expected["EM"].append(found[0] if equal else NONE)
        expected["MinED"].append(found[0] if equal or soft else NONE)
        expected["MS"].append(found[-1])
    for rule, places in expected.items():
        aligned = by_warping(
            Tokens(ids[1], target),  # type: ignore[arg-type]
            Tokens(ids[0], source),  # type: ignore[arg-type]
            Matching(rule, to_target, preference=preference),  # type: ignore[arg-type]
        )
        assert aligned.tolist() == places, rule


@pytest.mark.parametrize("seed", SEEDS)
def test_statistics_map_to_the_first_token_of_least_weighted_distance(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = (random_texts(generator, 8) for _ in range(2))
    counts = generator.integers(0, 4, size=(8, 8)) * generator.integers(0, 2, size=(8, 8))
    expected: dict[int, int] = {}
    for one, row in enumerate(counts):
        scores = np.full(8, np.inf)
        for other, count in enumerate(row):
            if count > 0:
                contained = first[one] in second[other] or second[other] in first[one]
                distance = Levenshtein.distance(first[one], second[other]) * (0.1 if contained else 1.0)
                scores[other] = distance * (1 / (1 + np.exp(-float(count))))
        if np.isfinite(scores).any():
            expected[one] = int(scores.argmin())
    given = [(one, other, float(counts[one, other])) for one in range(8) for other in range(8)]
    assert statistics_map(given, first, second, by="Sigmoid") == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_strategies_choose_the_least_cross_entropy_and_average_by_rewards(seed: int) -> None:
    generator = np.random.default_rng(seed)
    models, places, kept, size = 3, 5, 4, 20
    cross_entropies = generator.uniform(0.1, 5, size=models)
    ids = [np.stack([generator.permutation(size)[:kept] for _ in range(places)]) for _ in range(models)]
    shares = [generator.dirichlet(np.ones(kept), size=places) for _ in range(models)]
    dense = np.zeros((models, places, size))
    for model in range(models):
        np.put_along_axis(dense[model], ids[model], shares[model], axis=1)
    assert least(cross_entropies.tolist()) == min(range(models), key=lambda model: cross_entropies[model])
    rewards = np.exp(-cross_entropies)
    weights = np.exp(rewards) / np.exp(rewards).sum()
    assert average_weights(cross_entropies.tolist()) == pytest.approx(weights, abs=1e-12)
    # With room for all ids nothing is cut, so that the average is the dense one.
    found_ids, found = averaged(ids, shares, average_weights(cross_entropies.tolist()), models * kept)
    whole = np.zeros((places, size))
    for place in range(places):
        is_entry = found_ids[place] != EMPTY
        whole[place, found_ids[place][is_entry]] = found[place][is_entry]
    np.testing.assert_allclose(whole, np.einsum("m,mps->ps", weights, dense), atol=1e-6)
