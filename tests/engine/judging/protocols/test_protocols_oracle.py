"""Our files and numbers, read and computed by alpaca_eval and FastChat themselves.

WRPO_ORACLE_PYTHON names the interpreter of an environment with `setuptools<81 alpaca-eval==0.6.6 scikit-learn==1.9.1`,
and `fschat==0.2.36` without its dependencies.
"""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.protocol_cases import MT, ask_all, golden, item, judge

from wrpo_engine.artifacts import records
from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.bundles.native import native_answers
from wrpo_engine.judging.protocol import Ask, Reply, Transcript
from wrpo_engine.judging.protocols import Baseline, protocol_of

ORACLE = os.environ.get("WRPO_ORACLE_PYTHON")
READERS = Path(__file__).parents[3] / "support" / "oracle_readers.py"
SYNTHETIC = golden("alpaca_eval")["synthetic"]
SYSTEM = "fused"
_TEMPLATE = """
import importlib.metadata
(path,) = (file for file in importlib.metadata.files("alpaca-eval") if file.name == "alpaca_eval_clf.txt")
print(path.locate().read_text(encoding="utf-8"), end="")
"""
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(ORACLE is None, reason="WRPO_ORACLE_PYTHON names no interpreter"),
]
ITEMS = [
    item(f"{n}", n, turns=(f"Instruction {n}",), baseline=("b" * row["len_1"],), category="set")
    for n, row in enumerate(SYNTHETIC["rows"])
]
ANSWERS = {f"{n}": ["m" * row["len_2"]] for n, row in enumerate(SYNTHETIC["rows"])} | {"3": ['quoted """ {output_1}\n']}
CHAT_ITEMS = [item(f"{81 + n}", n, turns=("a", "b"), category="writing") for n in range(4)]
CHAT_ANSWERS = {entry.item_id: [f"{entry.item_id} first", "second"] for entry in CHAT_ITEMS}


def likes_length(ask: Ask) -> Reply:
    """Log probabilities that depend on the question's text alone."""
    chance = 0.05 + 0.9 * (sum(ask.messages[-1]["content"].encode()) % 97) / 97
    return Reply(text="m", top_logprobs={"m": math.log(chance), "M": math.log(1 - chance), "The": -9.0})


def rate(ask: Ask) -> str:
    return "no rating" if (ask.item_id, ask.turn) == ("83", 1) else f"[[{int(ask.item_id) % 7 + ask.turn + 1}]]"


def python(*arguments: str) -> str:
    """Run the oracle's interpreter and return what it prints."""
    ended = subprocess.run([str(ORACLE), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the original tools say of our files, and what we say."""
    root = tmp_path_factory.mktemp("oracle")
    template = python("-c", _TEMPLATE)
    gamed = pl.DataFrame(SYNTHETIC["df_gamed"])
    gamed.with_columns(pl.col("not_gamed_baseline").replace_strict({True: "True", False: "False"})).write_csv(
        root / "df_gamed.csv"
    )
    alpaca = protocol_of(
        "AlpacaEval2",
        judge(),
        templates={"alpaca_eval_clf": template},
        baseline=Baseline(regulariser=gamed.select(list(records.BENCH_REGULARISER))),
    )
    chat = protocol_of("MTBench", judge(), templates=MT)
    asked = ask_all(alpaca, ITEMS, ANSWERS, likes_length)
    chatted = ask_all(chat, CHAT_ITEMS, CHAT_ANSWERS, rate)
    files = {
        **native_answers("AlpacaEval2", bench(ITEMS), ANSWERS, system=SYSTEM),
        **native_answers("MTBench", bench(CHAT_ITEMS), CHAT_ANSWERS, system=SYSTEM),
        **alpaca.native_files(ITEMS, ANSWERS, Transcript(*asked, system=SYSTEM, judge="gpt-x")),
        **chat.native_files(CHAT_ITEMS, CHAT_ANSWERS, Transcript(*chatted, system=SYSTEM, judge="gpt-4")),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    said = json.loads(python(str(READERS), str(root)).splitlines()[-1])
    return {
        **said,
        "asks": asked[0],
        "alpaca": alpaca.summarise(ITEMS, ANSWERS, asked[1]).metrics,
        "verdicts": asked[1],
        "chat": chat.summarise(CHAT_ITEMS, CHAT_ANSWERS, chatted[1]).metrics,
        "root": root,
    }


def bench(items: Any) -> list[BenchItem]:
    return [
        BenchItem(item_id=each.item_id, index=each.index, category=each.category, turns=each.turns) for each in items
    ]


def test_alpaca_eval_computes_our_win_rates_from_our_annotations(found: dict[str, Any]) -> None:
    theirs = found["alpaca_eval"]["metrics"]
    ours = found["alpaca"]
    names = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate")
    assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-12)
    assert ours["lc_win_rate"] == pytest.approx(theirs["length_controlled_winrate"], rel=1e-9)
    (row,) = csv.DictReader((found["root"] / "leaderboard.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["lc_standard_error"]) == pytest.approx(theirs["lc_standard_error"], rel=1e-6)
    assert found["alpaca_eval"]["leaderboard"]["win_rate"] == pytest.approx(theirs["win_rate"], rel=1e-12)


def test_alpaca_eval_reads_our_answers_and_our_replies(found: dict[str, Any]) -> None:
    assert found["alpaca_eval"]["outputs"] == [ANSWERS[entry.item_id][0] for entry in ITEMS]
    preferences = [3 - entry.value if entry.order else entry.value for entry in found["verdicts"]]
    assert found["alpaca_eval"]["parsed"] == pytest.approx(preferences, rel=1e-12)


def test_alpaca_eval_sends_the_same_messages(found: dict[str, Any]) -> None:
    """Of the unswitched items without a field's name in an answer, which the original would replace."""
    compared = 0
    for ask, theirs in zip(found["asks"], found["alpaca_eval"]["messages"], strict=True):
        if ask.order == 0 and ask.item_id != "3":
            assert [dict(message) for message in ask.messages] == theirs
            compared += 1
    assert compared > 10


def test_fastchat_reads_our_answers_and_prints_our_means(found: dict[str, Any]) -> None:
    fastchat = found["fastchat"]
    assert fastchat["answers"] == {
        SYSTEM: {item_id: [{"index": 0, "turns": turns}] for item_id, turns in CHAT_ANSWERS.items()}
    }
    assert fastchat["judged"] == sorted(
        ["gpt-4", name, entry.item_id, SYSTEM] for entry in CHAT_ITEMS for name in ("single-v1", "single-v1-multi-turn")
    )
    means = [float(line.split()[-1]) for line in fastchat["printed"].splitlines() if line.startswith(SYSTEM)]
    ours = [found["chat"][name] for name in ("first_turn", "second_turn", "overall")]
    assert means == pytest.approx(ours, abs=1e-5)
