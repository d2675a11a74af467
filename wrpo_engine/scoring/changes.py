"""Responses of which a reward model reads other characters than were written: counted, refused if too many."""

from __future__ import annotations

import logging

import polars as pl

from wrpo_engine.errors import DataError
from wrpo_engine.text.chat import Change

log = logging.getLogger("wrpo_engine")

MAX_CHANGED_SHARE = 0.1
_NAMES = ("label", "prompt_id", "item_id", "turn", "source", "sample_index")


def refuse_changed(rows: pl.DataFrame, *, field: str) -> None:
    """Raise DataError if the reward model does not know characters of more responses than `MAX_CHANGED_SHARE`.

    `rows` has the column `change` and some that name a response. `field` of the spec is the reward model. Fewer such
    responses are logged.
    """
    changed = rows.filter(pl.col("change") == Change.CONTENT)
    if not changed.height:
        return
    name = ", ".join(f"{column} {changed[column][0]}" for column in _NAMES if column in rows.columns)
    said = (
        f"{changed.height} of {rows.height} responses ({changed.height / rows.height:.1%}) have characters "
        f"that the reward model's tokenizer does not know; the first is {name}"
    )
    if changed.height <= MAX_CHANGED_SHARE * rows.height:
        log.warning("%s", said)
        return
    raise DataError(
        f"{said}. At most {MAX_CHANGED_SHARE:.0%} of them may have some, because their scores are those of other texts",
        code="ResponsesChanged",
        field=field,
        hint="Use a reward model whose tokenizer knows the characters of the responses, for example their language.",
    )
