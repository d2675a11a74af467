"""Counts that every benchmark reports in addition to its scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from wrpo_engine.judging.protocol import Item, Outcome, Verdict


def counts(
    items: Sequence[Item],
    answers: Mapping[str, Sequence[str]],
    verdicts: Sequence[Verdict],
    *,
    delimiters: Iterable[str],
) -> dict[str, float]:
    """Return the counts of items, verdicts by outcome, and answers that need a look.

    `delimiters` are the texts that enclose an answer in the judge prompt: an answer that holds one can pretend to end
    there. invalid_share is of all questions to the judge, those of items without an answer included.
    """
    marks = tuple(delimiters)
    given = [answers[item.item_id] for item in items if item.item_id in answers]
    unanswered = len(items) - len(given)
    invalid = sum(verdict.outcome is not Outcome.OK for verdict in verdicts)
    asked = len(verdicts) + unanswered
    return {
        "items": float(len(items)),
        "unanswered": float(unanswered),
        "empty_answers": float(sum(any(not text.strip() for text in turns) for turns in given)),
        "answers_with_delimiters": float(sum(any(mark in text for text in turns for mark in marks) for turns in given)),
        **{outcome.value: float(sum(verdict.outcome is outcome for verdict in verdicts)) for outcome in Outcome},
        "invalid_share": (invalid + unanswered) / asked if asked else 0.0,
    }


def by_item(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Return the verdicts of each item, sorted by order and turn."""
    found: dict[str, list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda entry: (entry.order, entry.turn)):
        found.setdefault(verdict.item_id, []).append(verdict)
    return found
