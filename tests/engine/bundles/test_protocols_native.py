"""Files of answers are those of the original tools, and are read in each of their forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.bundles.content import Answer
from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.bundles.native import native_answers, read_answers
from wrpo_engine.contract.benchmarks import Protocol

ITEMS = [
    BenchItem(item_id="81", index=0, category="writing", turns=("Write.", "Again.")),
    BenchItem(item_id="82", index=1, category="math", turns=("Add.", "More.")),
    BenchItem(item_id="83", index=2, category="math", turns=("Skipped.", "Skipped.")),
]
ANSWERS = {"81": ("# Title\n- **a**", "b"), "82": ("4", "16")}
NAMES: dict[Protocol, str] = {
    "AlpacaEval2": "model_outputs.json",
    "ArenaHard": "model_answer/org--m.jsonl",
    "ArenaHardV2": "model_answer/org--m.jsonl",
    "MTBench": "model_answer/org--m.jsonl",
}


def rows(protocol: Protocol, **options: Any) -> list[Any]:
    ((name, content),) = native_answers(protocol, ITEMS, ANSWERS, system="org/m", **options).items()
    assert name == NAMES[protocol]
    return json.loads(content) if protocol == "AlpacaEval2" else [json.loads(line) for line in content.splitlines()]


def test_alpaca_eval_has_one_object_for_each_answer() -> None:
    assert rows("AlpacaEval2")[0] == {
        "dataset": "writing",
        "instruction": "Write.",
        "output": "# Title\n- **a**",
        "generator": "org/m",
    }


def test_fastchat_has_the_turns_of_one_choice() -> None:
    row = rows("MTBench")[1]
    assert row.pop("answer_id")
    assert row == {
        "question_id": 82,
        "model_id": "org/m",
        "choices": [{"index": 0, "turns": ["4", "16"]}],
        "tstamp": 0,
    }


def test_arena_hard_has_lengths_and_counts_of_markdown() -> None:
    tokens = {"81": (5, 1), "82": (1, 2)}
    assert rows("ArenaHard", tokens=tokens)[0]["choices"] == [
        {"index": 0, "turns": [{"content": "# Title\n- **a**", "token_len": 5}, {"content": "b", "token_len": 1}]}
    ]
    row = rows("ArenaHardV2", tokens=tokens)[0]
    assert (row["uid"], row["model"], row["tstamp"]) == ("81", "org/m", 0)
    assert row["messages"] == [
        {"role": "user", "content": "Write."},
        {"role": "assistant", "content": {"answer": "# Title\n- **a**"}},
    ]
    assert row["metadata"]["token_len"] == 5
    assert [sum(row["metadata"][name].values()) for name in ("header_count", "list_count", "bold_count")] == [1, 1, 1]
    assert rows("ArenaHardV2")[0]["metadata"]["token_len"] == len("# Title\n- **a**")


@pytest.mark.parametrize("protocol", NAMES)
def test_files_are_read_back_and_alike_every_time(tmp_path: Path, protocol: Protocol) -> None:
    files = [native_answers(protocol, ITEMS, ANSWERS, system="org/m") for _ in range(2)]
    assert files[0] == files[1]
    path = tmp_path / Path(NAMES[protocol]).name
    path.write_text(files[0][NAMES[protocol]], encoding="utf-8")
    whole = protocol in {"ArenaHard", "MTBench"}
    assert read_answers(path, ITEMS) == {
        item_id: Answer(model="org/m", turns=turns if whole else turns[:1]) for item_id, turns in ANSWERS.items()
    }


@given(st.text(max_size=20), st.sampled_from(sorted(NAMES)))
def test_any_text_of_an_answer_survives(text: str, protocol: Any) -> None:
    item = BenchItem(item_id="q", index=0, category="", turns=("?",))
    ((_, content),) = native_answers(protocol, [item], {"q": [text]}, system="m").items()
    values = json.loads(content) if protocol == "AlpacaEval2" else [json.loads(content)]
    assert text in json.loads(json.dumps(list(strings(values))))


def strings(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)
