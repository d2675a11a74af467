"""Near duplicates equal those of comparing every pair, and cost stays bounded."""

from __future__ import annotations

import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.linting import minhash
from wrpo_engine.linting.minhash import near_pairs, shingles
from wrpo_engine.linting.normalise import normalised

WORDS = [f"w{number}" for number in range(400)]


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = text.split(" ")
    return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}


def similarity(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def varied(generator: random.Random, text: str, changes: int) -> str:
    words = text.split(" ")
    for _ in range(changes):
        words[generator.randrange(len(words))] = generator.choice(WORDS)
    return " ".join(words)


def test_every_pair_above_the_threshold_is_found_and_no_other() -> None:
    generator = random.Random(3)
    left = [" ".join(generator.choices(WORDS, k=generator.randrange(1, 120))) for _ in range(100)]
    right = [varied(generator, text, changes) for text in left for changes in (0, 1, 2, 9)]
    found = near_pairs(pl.Series(left), pl.Series(right), threshold=0.8)
    ours, theirs = [trigrams(text) for text in left], [trigrams(text) for text in right]
    expected = {
        (one, other)
        for one, first in enumerate(ours)
        for other, second in enumerate(theirs)
        if similarity(first, second) >= 0.8
    }
    assert len(expected) > 150
    assert set(zip(found.left.tolist(), found.right.tolist(), strict=True)) == expected
    assert found.is_complete
    values = [similarity(ours[one], theirs[other]) for one, other in zip(found.left, found.right, strict=True)]
    assert found.similarity.tolist() == pytest.approx(values)


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=12))
def test_shingles_are_the_trigrams_of_each_text_alone(texts: list[str]) -> None:
    hashed = shingles(pl.Series(texts))
    assert [len(set(hashed.of(index).tolist())) for index in range(len(texts))] == [
        len(trigrams(text)) for text in texts
    ]
    alone = [shingles(pl.Series([text])).values for text in texts]
    assert all(np.array_equal(hashed.of(index), each) for index, each in enumerate(alone))


def test_a_phrase_that_all_share_does_not_make_it_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "_PAIRS", 500)
    template = "please read the following text with care and answer the question about it in one short sentence"
    left = [f"{template} {WORDS[number]}" for number in range(60)]
    rare = "an entirely different request about growing tomatoes on a balcony in late autumn weather"
    found = near_pairs(pl.Series([*left, rare]), pl.Series([*left, f"{rare} please"]), threshold=0.7)
    assert not found.is_complete
    assert (60, 60) in set(zip(found.left.tolist(), found.right.tolist(), strict=True))


NORMAL = {
    "case and punctuation": ("Why, is it  SO?", "why is it so"),
    "compatibility forms": ("\uff37\uff48\uff59 \ufb01x", "why fix"),
    "no word at all": ("?!", "?!"),
}


@pytest.mark.parametrize(("text", "expected"), NORMAL.values(), ids=NORMAL.keys())
def test_texts_are_the_same_but_for_their_surface(text: str, expected: str) -> None:
    assert pl.DataFrame({"t": [text]}).select(normalised(pl.col("t"))).item() == expected
