"""Files of answers as AlpacaEval, FastChat and Arena-Hard write them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wrpo_engine.bundles.content import Answer
from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.bundles.markdown import markdown_counts
from wrpo_engine.bundles.names import file_name, json_line, json_text, question_id
from wrpo_engine.bundles.rows import Row, table
from wrpo_engine.contract.benchmarks import Protocol

_ID_CHARS = 22


def native_answers(
    protocol: Protocol,
    items: Sequence[BenchItem],
    answers: Mapping[str, Sequence[str]],
    *,
    system: str,
    tokens: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, str]:
    """Return name -> content of the file of the items with an answer, as the benchmark's own tools read it.

    `answers` and `tokens` (lengths in tokens) are by item and turn. Without tokens, lengths are in characters. The
    content holds no time, so a second run gives the same bytes.
    """
    given = [item for item in items if item.item_id in answers]
    match protocol:
        case "AlpacaEval2":
            rows = [
                {
                    "dataset": item.category,
                    "instruction": item.turns[0],
                    "output": answers[item.item_id][0],
                    "generator": system,
                }
                for item in given
            ]
            return {"model_outputs.json": json_text(rows, indent=2) + "\n"}
        case "MTBench":
            lines = [_fastchat(item.item_id, list(answers[item.item_id]), system) for item in given]
        case "ArenaHard":
            lines = [
                _arena_v01(item.item_id, answers[item.item_id], _lengths(item, answers, tokens), system)
                for item in given
            ]
        case "ArenaHardV2":
            lines = [_arena_v20(item, answers[item.item_id], _lengths(item, answers, tokens), system) for item in given]
    return {f"model_answer/{file_name(system)}.jsonl": "".join(json_line(line) for line in lines)}


def read_answers(path: Path, items: Sequence[BenchItem]) -> dict[str, Answer]:
    """Return item id -> answer of a file of any of these formats, or of rows {id, output}, for the items given.

    Rows are matched by id, or by the instruction where they have none. Raises DataError for a row of another format,
    and for a second row of an item.
    """
    ids = {item.item_id for item in items}
    by_instruction = {item.turns[0]: item.item_id for item in reversed(items)}
    found: dict[str, Answer] = {}
    for row in table(path):
        item_id = _item_id(row, by_instruction)
        if item_id is None or item_id not in ids:
            continue
        if item_id in found:
            raise row.fault(f"item {item_id!r} has an answer already", "Keep one row an item.")
        found[item_id] = _answer(row)
    return found


def _item_id(row: Row, by_instruction: Mapping[str, str]) -> str | None:
    if not any(row.values.get(name) is not None for name in _KEYS) and "instruction" in row.values:
        return by_instruction.get(row.text("instruction"))
    return row.key(*_KEYS)


_KEYS = ("question_id", "uid", "id", "item_id")
_MODELS = ("model_id", "model", "generator")


def _answer(row: Row) -> Answer:
    model = next((row.text(name) for name in _MODELS if row.values.get(name) is not None), "baseline")
    if isinstance(row.values.get("choices"), list) and row.values["choices"]:
        return Answer(model=model, turns=tuple(_turn_text(row, turn) for turn in _turns(row)))
    if isinstance(row.values.get("messages"), list) and row.values["messages"]:
        said = [message for message in row.values["messages"] if _role(message) == "assistant"]
        return Answer(model=model, turns=tuple(_turn_text(row, message["content"]) for message in said))
    column, _ = row.first("output", "turns", "answer", "text")
    return Answer(model=model, turns=row.texts(column))


def _turns(row: Row) -> list[Any]:
    first = row.values["choices"][0]
    turns = first.get("turns") if isinstance(first, dict) else None
    if not isinstance(turns, list):
        raise row.fault("choices[0] has no list of turns")
    return turns


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) and "content" in message else None


def _turn_text(row: Row, turn: Any) -> str:
    """Return the text of a turn: itself (FastChat), its content (Arena-Hard v0.1) or its answer (v2.0)."""
    if isinstance(turn, dict):
        turn = turn.get("content", turn.get("answer"))
    if not isinstance(turn, str):
        raise row.fault("a turn has no text")
    return turn


def _lengths(
    item: BenchItem, answers: Mapping[str, Sequence[str]], tokens: Mapping[str, Sequence[int]] | None
) -> Sequence[int]:
    return [len(text) for text in answers[item.item_id]] if tokens is None else tokens[item.item_id]


def _answer_id(item_id: str, system: str) -> str:
    """Return an id that depends on the item and the system alone; the originals draw one."""
    return hashlib.sha256(f"{system}\0{item_id}".encode()).hexdigest()[:_ID_CHARS]


def _fastchat(item_id: str, turns: Sequence[Any], system: str) -> dict[str, Any]:
    return {
        "question_id": question_id(item_id),
        "answer_id": _answer_id(item_id, system),
        "model_id": system,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": 0,
    }


def _arena_v01(item_id: str, turns: Sequence[str], lengths: Sequence[int], system: str) -> dict[str, Any]:
    contents = [{"content": text, "token_len": length} for text, length in zip(turns, lengths, strict=True)]
    return _fastchat(item_id, contents, system) | {"question_id": item_id}


def _arena_v20(item: BenchItem, turns: Sequence[str], lengths: Sequence[int], system: str) -> dict[str, Any]:
    return {
        "uid": item.item_id,
        "ans_id": _answer_id(item.item_id, system),
        "model": system,
        "messages": [
            *item.messages,
            {"role": "user", "content": item.turns[0]},
            {"role": "assistant", "content": {"answer": turns[0]}},
        ],
        "tstamp": 0,
        "metadata": {"token_len": lengths[0], **markdown_counts(turns[0])},
    }
