"""A slow reading of the rules, one prompt and one pair at a time, to compare the column-wise one with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wrpo_engine.contract.data import RowRules
from wrpo_engine.curation.pairing import Dropped

TARGET = "target"


class Answer(NamedTuple):
    prompt: int
    model: str
    sample_index: int
    text: str
    score: float


class Row(NamedTuple):
    prompt: int
    source: Answer | None
    chosen: Answer
    rejected: Answer


def better(first: Answer, second: Answer) -> bool:
    """Whether the first of two answers is preferred where the higher score wins."""
    if first.score != second.score:
        return first.score > second.score
    return (first.model, first.sample_index) < (second.model, second.sample_index)


def worse(first: Answer, second: Answer) -> bool:
    """Whether the first of two answers is preferred where the lower score wins."""
    if first.score != second.score:
        return first.score < second.score
    return (first.model, first.sample_index) < (second.model, second.sample_index)


def best_of(answers: Sequence[Answer]) -> Answer | None:
    top: Answer | None = None
    for answer in answers:
        if top is None or better(answer, top):
            top = answer
    return top


def worst_other(pool: Sequence[Answer], chosen: Answer, *, same_model: bool) -> Answer | None:
    lowest: Answer | None = None
    for answer in pool:
        if same_model and answer.model != chosen.model:
            continue
        if answer.text != chosen.text and (lowest is None or worse(answer, lowest)):
            lowest = answer
    return lowest


def one(prompt: int, answers: Sequence[Answer], rules: RowRules) -> Row | Dropped:
    triples = rules.pairing == "WRPO"
    source = None
    if triples and rules.needs_source:
        source = best_of([answer for answer in answers if answer.model != TARGET])
        if source is None:
            return Dropped.NO_SOURCE_RESPONSE
    pool = [answer for answer in answers if not triples or answer.model == TARGET]
    chosen = best_of(pool)
    if chosen is None:
        return Dropped.NO_TARGET_RESPONSE if triples else Dropped.NO_RESPONSE
    rejected = worst_other(pool, chosen, same_model=rules.pairing == "WithinSource")
    if rejected is None:
        return Dropped.TARGET_IDENTICAL if triples else Dropped.IDENTICAL
    gap = chosen.score - rejected.score
    if gap == 0 and rules.on_tie == "Drop":
        return Dropped.TARGET_TIE if triples else Dropped.TIE
    if gap < rules.score_margin:
        return Dropped.SCORE_MARGIN
    if rules.max_score_gap is not None and gap > rules.max_score_gap:
        return Dropped.SCORE_GAP
    if source is not None and rules.require_source_better and not source.score > chosen.score:
        return Dropped.SOURCE_NOT_BETTER
    return Row(prompt, source, chosen, rejected)


def curate(prompts: Sequence[str], answers: Sequence[Answer], rules: RowRules) -> tuple[list[Row], dict[Dropped, int]]:
    rows: list[Row] = []
    dropped: dict[Dropped, int] = {}
    seen: set[tuple[str, ...]] = set()
    for number, text in enumerate(prompts):
        outcome = one(number, [answer for answer in answers if answer.prompt == number], rules)
        if isinstance(outcome, Row):
            texts = [answer.text for answer in outcome[1:] if isinstance(answer, Answer)]
            if rules.drop_duplicates and (text, *texts) in seen:
                outcome = Dropped.DUPLICATE
            else:
                seen.add((text, *texts))
                rows.append(outcome)
        if isinstance(outcome, Dropped):
            dropped[outcome] = dropped.get(outcome, 0) + 1
    return rows, dropped
