"""AlpacaEval's files of judgements, as its own tools write and read them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from wrpo_engine.bundles.names import json_text
from wrpo_engine.judging.protocol import Item, Reply, Transcript
from wrpo_engine.judging.protocols.length_control import LengthControl

_COUNTS = ("n_wins", "n_wins_base", "n_draws", "n_total")
_COLUMNS = ("win_rate", "standard_error", *_COUNTS, "discrete_win_rate")


def annotations_file(
    items: Sequence[Item],
    answers: Mapping[str, Sequence[str]],
    values: Mapping[str, float | None],
    transcript: Transcript,
    *,
    names: Mapping[str, str],
) -> str:
    """Return the content of annotations.json, in the order of the items; without a verdict the preference is null."""
    replies = {item_id: given for (item_id, _, _), given in transcript.replies.items()}
    rows = [
        {
            "instruction": item.turns[0],
            "output_1": item.baseline[0],
            "generator_1": names.get(item.item_id, "baseline"),
            "dataset": item.category,
            "output_2": answers[item.item_id][0],
            "generator_2": transcript.system,
            "annotator": transcript.judge,
            "preference": values.get(item.item_id),
            "price_per_example": None,
            "time_per_example": None,
            "raw_completion": _completion(replies.get(item.item_id, ())),
        }
        for item in items
    ]
    return json_text(rows, indent=2) + "\n"


def leaderboard_file(system: str, rates: Mapping[str, float], controlled: LengthControl | None) -> str:
    """Return the content of leaderboard.csv. Its lc_standard_error is no standard error; see `LengthControl.spread`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = (*_COLUMNS, "mode", "avg_length", "length_controlled_winrate", "lc_standard_error")
    writer.writerow(["", *columns])
    row: dict[str, Any] = {name: rates.get(name, "") for name in (*_COLUMNS, "avg_length")}
    row |= {name: int(rates[name]) for name in _COUNTS}
    row["mode"] = "community"
    if controlled is not None:
        row |= {"length_controlled_winrate": controlled.win_rate, "lc_standard_error": controlled.spread}
    writer.writerow([system, *(row.get(name, "") for name in columns)])
    return stream.getvalue()


def _completion(replies: Sequence[Reply]) -> Any:
    """Return a reply in the form of a choice of a chat completion, which the original's parser reads."""
    if not replies:
        return None
    reply = replies[-1]
    choice: dict[str, Any] = {"finish_reason": reply.finish_reason, "index": 0, "logprobs": None}
    if reply.top_logprobs is not None:
        # JSON has no infinity.
        top = [
            {"token": token, "logprob": value} for token, value in reply.top_logprobs.items() if math.isfinite(value)
        ]
        choice["logprobs"] = {"content": [{"token": reply.text, "top_logprobs": top}]}
    return choice | {"message": {"content": reply.text, "role": "assistant"}, "text": reply.text}
