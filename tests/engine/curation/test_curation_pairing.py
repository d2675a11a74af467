"""The column-wise choice equals a naive reading of the rules, and obeys the laws that users rely on."""

from __future__ import annotations

from typing import Any

import naive_curation as naive
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_curation import TARGET, Answer

from wrpo_engine.contract.data import RowRules
from wrpo_engine.curation.pairing import Curated, Dropped, curate
from wrpo_engine.curation.responses import CANDIDATES

MODELS = ["ann", "bob", TARGET, "zoe"]
PROMPTS = ["p", "q", "p", "q", "r"]
RULES = st.builds(
    RowRules,
    pairing=st.sampled_from(["WRPO", "WithinSource", "BestWorst"]),
    score_margin=st.sampled_from([0.0, 0.25, 0.6]),
    max_score_gap=st.sampled_from([None, 0.6, 0.75]),
    require_source_better=st.booleans(),
    on_tie=st.sampled_from(["Drop", "KeepFirst"]),
    drop_duplicates=st.booleans(),
    needs_source=st.booleans(),
)
ANSWERS = st.lists(
    st.builds(
        Answer,
        st.integers(0, len(PROMPTS) - 1),
        st.sampled_from(MODELS),
        st.integers(0, 3),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ),
    max_size=30,
    unique_by=lambda answer: answer[:3],
)


def column_wise(answers: list[Answer], rules: RowRules) -> Curated:
    texts = pl.Series([answer.text for answer in answers], dtype=pl.String).hash()
    rows = [
        (answer.prompt, MODELS.index(answer.model), answer.sample_index, answer.score, key, False, 0, place)
        for place, (answer, key) in enumerate(zip(answers, texts, strict=True))
    ]
    frame = pl.DataFrame(rows, schema=CANDIDATES, orient="row")
    return curate(frame, pl.Series(PROMPTS).hash(), rules, target=MODELS.index(TARGET))


def named(curated: Curated, answers: list[Answer]) -> list[naive.Row]:
    return [
        naive.Row(
            row["prompt"],
            answers[row["source_row"]] if "source_row" in row else None,
            answers[row["chosen_row"]],
            answers[row["rejected_row"]],
        )
        for row in curated.rows.to_dicts()
    ]


@settings(max_examples=150)
@given(answers=ANSWERS, rules=RULES)
def test_the_choice_is_what_a_naive_reading_of_the_rules_says(answers: list[Answer], rules: RowRules) -> None:
    curated = column_wise(answers, rules)
    assert (named(curated, answers), curated.dropped) == naive.curate(PROMPTS, answers, rules)


@given(answers=ANSWERS, rules=RULES, data=st.data())
def test_order_of_arrival_changes_nothing_and_every_prompt_is_kept_or_counted_once(
    answers: list[Answer], rules: RowRules, data: st.DataObject
) -> None:
    curated = column_wise(answers, rules)
    assert curated.rows.height + sum(curated.dropped.values()) == len(PROMPTS)
    assert curated.rows["prompt"].is_sorted()
    permuted = data.draw(st.permutations(answers))
    again = column_wise(permuted, rules)
    assert (named(again, permuted), again.dropped) == (named(curated, answers), curated.dropped)
    assert again.num_source_not_better == curated.num_source_not_better


@given(answers=ANSWERS, rules=RULES)
def test_rows_keep_to_margin_window_and_policy(answers: list[Answer], rules: RowRules) -> None:
    for _, source, chosen, rejected in named(column_wise(answers, rules), answers):
        gap = chosen.score - rejected.score
        assert gap >= rules.score_margin
        assert rules.max_score_gap is None or gap <= rules.max_score_gap
        assert chosen.text != rejected.text
        assert gap > 0 or rules.on_tie == "KeepFirst"
        if rules.pairing == "WRPO":
            assert {chosen.model, rejected.model} == {TARGET}
            assert (source is not None) == rules.needs_source
            assert source is None or source.model != TARGET
            assert source is None or not rules.require_source_better or source.score > chosen.score
        else:
            assert source is None
        if rules.pairing == "WithinSource":
            assert chosen.model == rejected.model


TIES: dict[str, tuple[list[str], list[float], Any, Any]] = {
    "all tie, dropped": (["a", "b"], [1.0, 1.0], "Drop", Dropped.TARGET_TIE),
    "all tie, the first two differing texts are kept": (["a", "a", "b"], [1.0, 1.0, 1.0], "KeepFirst", (0, 2)),
    "identical texts teach nothing": (["a", "a"], [1.0, 1.0], "KeepFirst", Dropped.TARGET_IDENTICAL),
    "one answer alone": (["a"], [1.0], "KeepFirst", Dropped.TARGET_IDENTICAL),
    "two best, the first counts": (["a", "b", "c"], [1.0, 1.0, 0.0], "Drop", (0, 2)),
    "two worst, the first counts": (["a", "b", "c"], [1.0, 0.0, 0.0], "Drop", (0, 1)),
}


@pytest.mark.parametrize(("texts", "scores", "on_tie", "expected"), TIES.values(), ids=TIES.keys())
def test_ties_follow_the_sample_index(texts: list[str], scores: list[float], on_tie: Any, expected: Any) -> None:
    answers = [Answer(0, TARGET, index, *pair) for index, pair in enumerate(zip(texts, scores, strict=True))]
    curated = column_wise(answers, RowRules(on_tie=on_tie, needs_source=False))
    if isinstance(expected, Dropped):
        assert curated.dropped[expected] == 1
    else:
        assert curated.rows.select("chosen_sample_index", "rejected_sample_index").row(0) == expected
