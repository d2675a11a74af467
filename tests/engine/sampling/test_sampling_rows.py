"""Which answers share a batch, and where they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.sampling.rows import Row, cut_at_stop, park, rows_of, shared_prefixes, take_batch
from wrpo_engine.sampling.sampler import FinishReason, SampleRequest, SamplerSettings

SETTINGS = SamplerSettings(temperature=0.8, top_p=0.95, max_tokens=20, stop_token_ids=(2,), max_model_length=100)


def row(key: str, length: int, tokens: int = 0, *, limit: int = 50) -> Row:
    request = SampleRequest(key=key, prompt_token_ids=[1] * length, num_samples=1, seed=0)
    return Row(request, 0, limit, np.random.default_rng(0), tokens=[5] * tokens)


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def test_each_answer_is_a_row_and_a_prompts_rows_stand_together() -> None:
    requests = [
        SampleRequest(key=key, prompt_token_ids=[1] * length, num_samples=3, seed=7)
        for key, length in [("a", 5), ("b", 90), ("c", 100), ("d", 5)]
    ]
    rows = rows_of(requests, SETTINGS)
    assert [(one.request.key, one.index, one.limit) for one in rows] == [
        (key, index, limit) for key, limit in [("c", 0), ("b", 10), ("a", 20), ("d", 20)] for index in range(3)
    ]
    assert [one.finished for one in rows[:4]] == [FinishReason.LENGTH] * 3 + [None]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=30),
    budget=st.integers(1, 500),
)
def test_batches_take_every_row_once_in_order_and_keep_the_budget(lengths: list[tuple[int, int]], budget: int) -> None:
    rows = [row(str(index), length, tokens) for index, (length, tokens) in enumerate(lengths)]
    waiting, taken = deque(rows), []
    while waiting:
        batch = take_batch(waiting, budget)
        assert batch
        width = max(len(one.ids) for one in batch)
        assert len(batch) == 1 or len(batch) * width <= budget
        taken += batch
    assert taken == rows


@given(count=st.integers(1, 30), width=st.integers(1, 100), budget=st.integers(1, 1000))
def test_parked_rows_come_next_in_order(count: int, width: int, budget: int) -> None:
    rows, later = [row(str(index), 3) for index in range(count)], row("later", 3)
    waiting = deque([later])
    staying = park(rows, waiting, width, budget)
    assert [*staying, *waiting] == [*rows, later]
    assert staying
    assert len(staying) == 1 or len(staying) * width <= budget


def test_only_rows_that_have_nothing_yet_share_what_is_read() -> None:
    batch = [row("a", 3), row("a", 3), row("b", 3), row("b", 3, 2), row("a", 3), row("b", 3, 2)]
    heads, places = shared_prefixes(batch)
    assert places == [0, 0, 1, 2, 0, 3]
    assert [batch.index(head) for head in heads] == [0, 2, 3, 5]
    assert all(heads[place].ids == one.ids for one, place in zip(batch, places, strict=True))


@given(text=st.text(max_size=40), stops=st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3))
def test_an_answer_ends_before_the_first_stop_text(text: str, stops: list[str]) -> None:
    tokens: list[int] = []
    cut = None
    for token in text.encode():
        tokens.append(token)
        if (cut := cut_at_stop(tokens, stops, decode)) is not None:
            break
    if any(stop in text for stop in stops):
        assert cut is not None
        assert text.startswith(cut)
        assert not any(stop in cut for stop in stops)
    else:
        # A character that is cut in two reads as U+FFFD, which may itself be a stop text.
        assert cut is None or any("�" in stop for stop in stops)


def test_a_row_says_why_it_ended() -> None:
    ended = row("a", 3, limit=5)
    for token in b"ab.":
        ended.add(token, frozenset(), ["."], decode)
    assert (ended.finished, ended.text, ended.tokens) == (FinishReason.STOP, "ab", list(b"ab."))
    full = row("a", 3, limit=2)
    for token in b"ab":
        full.add(token, frozenset(), ["."], decode)
    assert (full.finished, full.text) == (FinishReason.LENGTH, None)
    stopped = row("a", 3, limit=1)
    stopped.add(2, frozenset({2}), [], decode)
    assert stopped.finished == FinishReason.STOP
