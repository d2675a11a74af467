"""One row of preference data as other tools write it, to one of ours."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from wrpo_engine import records
from wrpo_engine.errors import DataError
from wrpo_engine.prompts.split import prompt_text

TRIPLES = {**records.TRIPLES, **records.TRIPLE_ORIGINS}
TOKENS = ("prompt_ids", "source_chosen_ids", "target_chosen_ids", "rejected_ids")
"""Columns of triples as token ids; source_chosen_ids is optional."""
_ASSISTANT = {"assistant", "gpt", "model"}
_USER = {"user", "human"}
_OPTIONAL = [name for name in TRIPLES if name not in {"prompt_id", "prompt", "target_chosen", "rejected"}]


def id_of(prompt: str) -> str:
    """Return the id that the prepare stage gives this prompt."""
    text = unicodedata.normalize("NFC", prompt).strip()
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def triples_frame(rows: Iterable[tuple[int, Any]], where: str) -> pl.DataFrame:
    """Return TRIPLES from numbered rows of any of the forms below; DataError names the first row of another form.

    - ours: prompt, target_chosen, rejected, perhaps source_chosen and the other columns
    - published: prompt (a text, a message, a conversation), chosen [y_ws, y_wt] or [y_wt], rejected [y_l]
    - pairs of other tools: chosen and rejected as texts, or as conversations that begin with the prompt

    Multi-turn prompts stand for their first user turn, as in the prepare stage.
    """
    columns: dict[str, list[Any]] = {name: [] for name in TRIPLES}
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise _wrong(number, where, f"is a {type(row).__name__}, but rows are objects")
        for name, value in _triple(row, number, where).items():
            columns[name].append(value)
    try:
        return pl.DataFrame(columns, schema=TRIPLES)
    except (TypeError, UnicodeEncodeError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"the rows of {where} cannot be taken as triples: {str(error).splitlines()[0]}",
            code="RowFormat",
            hint="Texts must be valid Unicode, scores numbers; `wrpo-engine convert --help` shows the row formats.",
        ) from error


def _triple(row: Mapping[str, Any], number: int, where: str) -> dict[str, Any]:
    flat = row.get("target_chosen") is not None
    chosen = [row["target_chosen"]] if flat else _responses(row.get("chosen"), "chosen", number, where)
    if flat and row.get("source_chosen") is not None:
        chosen.insert(0, row["source_chosen"])
    rejected = [row.get("rejected")] if flat else _responses(row.get("rejected"), "rejected", number, where)
    if len(chosen) not in {1, 2} or len(rejected) != 1 or not all(isinstance(text, str) for text in chosen + rejected):
        found = f"has {len(chosen)} chosen and {len(rejected)} rejected responses"
        raise _wrong(number, where, f"{found}; wanted are the texts [y_ws, y_wt] or [y_wt], and [y_l]")
    prompt = prompt_text(row.get("prompt", row.get("chosen")))
    if prompt is None:
        raise _wrong(number, where, "has no prompt: neither a text nor a user message in `prompt` or `chosen`")
    return {
        **{name: row.get(name) for name in _OPTIONAL},
        "prompt_id": row.get("prompt_id") or id_of(prompt),
        "prompt": prompt,
        "source_chosen": chosen[0] if len(chosen) == 2 else None,
        "target_chosen": chosen[-1],
        "rejected": rejected[0],
    }


def _responses(value: Any, name: str, number: int, where: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    messages: Sequence[Any] = [value] if isinstance(value, Mapping) else list(value)
    texts: list[Any] = []
    turns = 0
    for message in messages:
        if isinstance(message, Mapping):
            role = message.get("role", message.get("from"))
            turns += role in _USER
            if role in _ASSISTANT:
                texts.append(message.get("content", message.get("value")))
        else:
            texts.append(message)
    if turns > 1 or (turns and len(texts) > 1):
        # Two answers of a conversation must not pass for y_ws and y_wt.
        raise _wrong(number, where, f"has a conversation of several turns in `{name}`; only single turns are read")
    return texts


def _wrong(number: int, where: str, what: str) -> DataError:
    return DataError(
        f"row {number} of {where} {what}",
        code="RowFormat",
        hint="`wrpo-engine convert --help` shows the row formats that are read.",
    )
