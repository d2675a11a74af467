"""The first items of each benchmark with every system's answer and its verdicts, for the report. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wrpo_engine.bundles.answers import texts_by_item
from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.evaluation.cells import Answers
from wrpo_engine.evaluation.tables import Judgements
from wrpo_engine.text.conversations import prompt_of, prompt_text

SHOWN = 20
"""Items of each benchmark: by position, so none is chosen by its score."""
_LONGEST = 16_384
"""Characters of a text that are kept; answers are not bounded."""


def examples_of(
    benchmark: str,
    items: Sequence[BenchItem],
    answers: Mapping[str, Answers],
    columns: Sequence[Judgements],
) -> list[dict[str, Any]]:
    """Return the first items of a benchmark; `answers` are by system, `columns` those of this benchmark."""
    texts = {system: texts_by_item(each.frame) for system, each in answers.items()}
    return [
        {
            "benchmark": benchmark,
            "item_id": item.item_id,
            "category": item.category,
            "turns": [cut(turn) for turn in _turns(item)],
            "answers": [
                {
                    "system": system,
                    "texts": [cut(text) for text in by_item.get(item.item_id, ())],
                    "verdicts": [entry for column in columns for entry in _verdicts(column, system, item.item_id)],
                }
                for system, by_item in texts.items()
            ],
        }
        for item in items[:SHOWN]
    ]


def _turns(item: BenchItem) -> list[str]:
    """Return the user's turns, the first one after the messages before it."""
    first, *others = item.turns
    return [prompt_text(prompt_of(first, item.messages)), *others]


def _verdicts(column: Judgements, system: str, item_id: str) -> list[dict[str, Any]]:
    cell = column.cells[system]
    if cell.verdicts is None:
        row = cell.outcomes.row(by_predicate=pl.col("item_id") == item_id, named=True)
        outcome = "ok" if row["valid"] else "too_long"
        about = {"judge": column.judge, "turn": 0, "order": 0}
        return [{**about, "outcome": outcome, "verdict": "", "value": row["value"], "raw": ""}]
    rows = cell.verdicts.filter(item_id=item_id).sort("turn", "order")
    return [
        {
            "judge": column.judge,
            "turn": row["turn"],
            "order": row["order"],
            "outcome": row["outcome"],
            "verdict": row["verdict"] or "",
            "value": row["value"],
            "raw": cut(row["raw"] or ""),
        }
        for row in rows.iter_rows(named=True)
    ]


def cut(text: str) -> str:
    """Return a text of at most 16,384 characters, with a mark where more followed."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} [... {len(text) - _LONGEST} more characters]"
