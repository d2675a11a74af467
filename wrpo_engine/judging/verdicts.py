"""Rows of a judge artifact, and the verdicts that are read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.artifacts.checks import address
from wrpo_engine.errors import DataError
from wrpo_engine.judging.cell import Cell, Question
from wrpo_engine.judging.protocol import Ask, BenchmarkProtocol, Outcome, Verdict
from wrpo_engine.judging.replies import KeptReply, from_raw, to_raw
from wrpo_engine.judging.section import judge_section
from wrpo_engine.stage import StageContext

_MAX_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A question, its replies in all rounds, and the verdict."""

    question: Question
    replies: Sequence[KeptReply]
    requests: int
    verdict: Verdict


def verdict_of(protocol: BenchmarkProtocol, ask: Ask, replies: Sequence[KeptReply]) -> Verdict:
    """Return the verdict of the replies to a question and its follow-ups."""
    if replies[-1].outcome is not Outcome.OK:
        return Verdict(item_id=ask.item_id, order=ask.order, turn=ask.turn, outcome=replies[-1].outcome)
    return protocol.read(ask, [reply.as_reply() for reply in replies])


def frame_of(judged: Sequence[Judged]) -> pl.DataFrame:
    """Return the rows of a part.

    latency_ms is null: it would differ in each run, and an artifact is the same after each interruption.
    """
    rows = [
        {
            "item_id": each.verdict.item_id,
            "order": each.verdict.order,
            "turn": each.verdict.turn,
            "outcome": each.verdict.outcome.value,
            "verdict": each.verdict.verdict,
            "value": each.verdict.value,
            "raw": to_raw(each.replies),
            "finish_reason": each.replies[-1].finish_reason,
            "prompt_tokens": _total([reply.prompt_tokens for reply in each.replies]),
            "completion_tokens": _total([reply.completion_tokens for reply in each.replies]),
            "attempts": each.requests,
            "latency_ms": None,
        }
        for each in judged
    ]
    return pl.DataFrame(rows, schema=records.VERDICTS)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def judged_of(frame: pl.DataFrame, cell: Cell) -> list[Judged]:
    """Return what the rows of all parts hold, in the order of the items; verdicts are read from the raw replies."""
    questions = {each.name: each for each in cell.questions}
    found: list[Judged] = []
    for item_id, order, turn, raw, requests in frame.select("item_id", "order", "turn", "raw", "attempts").iter_rows():
        question = questions.pop((item_id, order, turn), None)
        if question is None:
            raise _disagree(f"has a verdict on item {item_id}, order {order}, turn {turn}, which is not asked")
        replies = from_raw(raw)
        verdict = verdict_of(cell.protocol, question.ask, replies)
        found.append(Judged(question=question, replies=replies, requests=requests, verdict=verdict))
    if questions:
        raise _disagree(f"has no verdict on {next(iter(questions.values())).where} ({len(questions)} such questions)")
    position = {item.item_id: index for index, item in enumerate(cell.items)}
    return sorted(found, key=lambda each: (position[each.question.ask.item_id], *each.question.name))


def _disagree(what: str) -> DataError:
    return DataError(
        f"the artifact {what}",
        code="InputsDisagree",
        hint="It belongs to other answers, another benchmark or another version of the protocol. Judge again.",
    )


def count_outcomes(judged: Sequence[Judged]) -> dict[str, int]:
    """Return the number of questions by outcome; outcomes that did not occur have 0."""
    counts = {outcome.value: 0 for outcome in Outcome}
    for each in judged:
        counts[each.verdict.outcome.value] += 1
    return counts


def check_invalid(ctx: StageContext, judged: Sequence[Judged], total: int) -> None:
    """Refuse verdicts of which too many of `total` questions are invalid; DataError has the counts."""
    limit = ctx.config.runtime.judge_max_invalid_share
    invalid = [each for each in judged if each.verdict.outcome is not Outcome.OK]
    if not total or len(invalid) / total <= limit:
        return
    counts = count_outcomes(judged)
    shown = ", ".join(f"{counts[outcome.value]} {outcome.value}" for outcome in Outcome)
    first = invalid[0]
    text = " ".join(first.replies[-1].content.split())[:_MAX_SHOWN]
    raise DataError(
        f"{len(invalid)} of {total} questions have no valid verdict ({len(invalid) / total:.1%}; {shown}), more than "
        f"maxInvalidShare {limit:g}; e.g. {first.question.where}: {first.verdict.outcome.value}, {text!r}",
        code="InvalidVerdicts",
        field=f"{judge_section(ctx.config.runtime)}.maxInvalidShare",
        hint="A score of the rest would be biased. Use a judge that follows the protocol, more maxTokens, or a longer "
        f"context. Replies are kept in {address(ctx.output.ref)}/parts and journal below the storage root; remove them "
        "to ask again.",
    )


def metrics_of(judged: Sequence[Judged]) -> dict[str, float]:
    """Return counts of questions, outcomes, requests and tokens; the same however often the stage was interrupted."""
    counts: Mapping[str, int] = count_outcomes(judged)
    replies = [reply for each in judged for reply in each.replies]
    total = len(judged)
    return {
        "questions": float(total),
        **{name: float(count) for name, count in counts.items()},
        "invalid_share": 1.0 - counts[Outcome.OK.value] / total if total else 0.0,
        "requests": float(sum(each.requests for each in judged)),
        "prompt_tokens": float(sum(reply.prompt_tokens or 0 for reply in replies)),
        "completion_tokens": float(sum(reply.completion_tokens or 0 for reply in replies)),
        "cut_replies": float(sum(reply.finish_reason == "length" for reply in replies)),
    }
