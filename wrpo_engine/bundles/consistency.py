"""Check that a system's answers belong to the items of a benchmark and answer all of them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.errors import DataError
from wrpo_engine.sampling.sampler import FinishReason

Key = tuple[str, int, int]
"""Item id, sample index, turn."""
KEY = ("item_id", "sample_index", "turn")


def was_skipped() -> pl.Expr:
    """Return the condition of answers that are empty because their prompt exceeds the model's context."""
    return pl.col("finish_reason") == FinishReason.PROMPT_TOO_LONG.value


def answer_name(item_id: str, sample_index: int, turn: int) -> str:
    """Return the name of an answer for messages."""
    return f"item_id {item_id}, sample_index {sample_index}, turn {turn}"


def check_answers(items: Sequence[BenchItem], answers: pl.DataFrame, *, role: str) -> None:
    """Raise DataError naming role, item, sample and turn of the first answer that is missing, superfluous or double.

    Turns after one whose prompt exceeds the model's context may be missing.
    """
    turns = {item.item_id: len(item.turns) for item in items}
    seen: set[Key] = set()
    incomplete: set[tuple[str, int]] = set()
    for item_id, sample, turn, skipped in answers.select(*KEY, was_skipped().alias("skipped")).iter_rows():
        key = (item_id, sample, turn)
        if key in seen:
            raise _disagree(role, key, "occurs twice")
        if item_id not in turns:
            raise _disagree(role, key, "belongs to no item of the benchmark")
        if not 0 <= turn < turns[item_id]:
            raise _disagree(role, key, f"belongs to none of the item's {turns[item_id]} turns")
        seen.add(key)
        if skipped:
            incomplete.add((item_id, sample))
    samples = {(item_id, sample) for item_id, sample, _ in seen} | {(item_id, 0) for item_id in turns}
    for item_id, sample in sorted(samples - incomplete):
        for turn in range(turns[item_id]):
            if (item_id, sample, turn) not in seen:
                raise _disagree(role, (item_id, sample, turn), "is missing")


def _disagree(role: str, key: Key, rule: str) -> DataError:
    return DataError(
        f"the answer {answer_name(*key)} of {role} {rule}",
        code="InputsDisagree",
        hint="Use answers together with the items of the benchmark that they answer.",
    )
