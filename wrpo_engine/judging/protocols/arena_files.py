"""Arena-Hard's files of judgements, as its own tools write and read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from wrpo_engine.bundles.names import file_name, json_line
from wrpo_engine.judging.protocol import Ask, Item, Outcome, Reply, Transcript


def judgments(
    items: Sequence[Item],
    transcript: Transcript,
    *,
    version: Literal["v0.1", "v2.0"],
    baselines: Mapping[str, str],
) -> dict[str, str]:
    """Return model_judgment/JUDGE/SYSTEM.jsonl: one line a question, with both games; no verdict is null."""
    by_key = {(ask.item_id, ask.order): ask for ask in transcript.asks}
    labels = {
        (entry.item_id, entry.order): entry.verdict for entry in transcript.verdicts if entry.outcome is Outcome.OK
    }
    system, judge = transcript.system, transcript.judge
    game = _game_v01 if version == "v0.1" else _game_v20
    lines = []
    for item in items:
        if (item.item_id, 0) not in by_key:
            continue
        games = [
            game(
                by_key[item.item_id, order],
                labels.get((item.item_id, order)),
                transcript.replies.get((item.item_id, order, 0), ()),
            )
            for order in (0, 1)
        ]
        row: dict[str, Any] = {"question_id": item.item_id, "model": system, "judge": judge, "games": games}
        if version == "v2.0":
            row = {
                "uid": item.item_id,
                "category": item.category,
                "judge": judge,
                "model": system,
                "baseline": baselines.get(item.item_id, "baseline"),
                "games": games,
            }
        lines.append(json_line(row))
    return {f"model_judgment/{file_name(judge)}/{file_name(system)}.jsonl": "".join(lines)}


def _game_v01(ask: Ask, label: str | None, replies: Sequence[Reply]) -> dict[str, Any]:
    judgment = "".join(f"\n{reply.text}" for reply in replies)
    return {"user_prompt": ask.messages[-1]["content"], "judgment": judgment, "score": label}


def _game_v20(ask: Ask, label: str | None, replies: Sequence[Reply]) -> dict[str, Any]:
    judgment = {"answer": "\n".join(reply.text for reply in replies)}
    return {"score": label, "judgment": judgment, "prompt": [dict(message) for message in ask.messages]}
