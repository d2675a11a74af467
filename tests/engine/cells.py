"""Artifacts of a small benchmark: items, answers of systems, and what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wrpo_engine.artifacts import records


def items_frame(turns: Mapping[str, Sequence[str]], messages: Mapping[str, list[dict[str, str]]] | None = None) -> Any:
    """items.parquet of a bundle: item id -> the user's turns."""
    rows = [
        {
            "item_id": item_id,
            "index": index,
            "category": "any",
            "turns": list(texts),
            "messages": (messages or {}).get(item_id, []),
            "temperature": None,
        }
        for index, (item_id, texts) in enumerate(turns.items())
    ]
    return pl.DataFrame(rows, schema=records.BENCH_ITEMS)


def answers_frame(answers: Mapping[str, str | Sequence[str | None] | None]) -> pl.DataFrame:
    """A part of answers: item id -> the text of each turn; None: the prompt is too long."""
    rows = []
    for item_id, found in answers.items():
        for turn, text in enumerate([found] if found is None or isinstance(found, str) else found):
            rows.append(
                {
                    "item_id": item_id,
                    "turn": turn,
                    "sample_index": 0,
                    "text": text or "",
                    "num_tokens": len(text or ""),
                    "finish_reason": "prompt_too_long" if text is None else "stop",
                    "seed": 7,
                    "prompt_tokens": 3,
                    "references_cut": 0,
                }
            )
    return pl.DataFrame(rows, schema=records.ANSWERS)


def commit_cells(commit_artifact: Any, turns: Mapping[str, Sequence[str]], members: Mapping[str, Any]) -> Any:
    """Commit a bundle of items and each member's answers; return the inputs of a stage that reads them."""
    found = {"bench/b": commit_artifact("bench/b", {"items.parquet": items_frame(turns)})}
    for role, answers in members.items():
        stage = role.replace("answers", "answer")
        found[role] = commit_artifact(stage, {"parts/part-00000.parquet": answers_frame(answers)})
    return found


def rows_of(ctx: Any) -> pl.DataFrame:
    """All rows of a stage's committed artifact."""
    artifact = ctx.output.committed()
    return pl.concat([pl.read_parquet(artifact.file(name)) for name in artifact.files("parts/")])
