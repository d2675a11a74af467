"""Readers of a benchmark's bundle: items, references, baseline and judge prompts.

Held-out prompts are a benchmark without a bundle: their items are the experiment's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from wrpo_engine.artifacts import Artifact
from wrpo_engine.bundles.files import BASELINE, DEVELOPMENT, ITEMS, REFERENCES, REGULARISER, TEMPLATES
from wrpo_engine.errors import ConfigError
from wrpo_engine.stage import StageContext

Message = Mapping[str, str]
"""role and content."""
_ROLE = "bench/"
_PROMPTS = "prompts"
_HELD_OUT = "evaluation.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchItem:
    """One item of a benchmark: what a system answers."""

    item_id: str
    index: int
    """Position in the bundle."""
    category: str
    turns: tuple[str, ...]
    """The user's turns."""
    messages: tuple[Message, ...] = ()
    """Conversation before the first turn."""
    temperature: float | None = None
    """None where the benchmark does not say."""


def read_items(ctx: StageContext) -> list[BenchItem]:
    """Return the items of the stage's benchmark in the order of the bundle; held-out prompts if it has no bundle."""
    bundle = _bundle(ctx)
    if bundle is None:
        rows = pl.read_parquet(ctx.input(_PROMPTS).file(_HELD_OUT)).to_dicts()
        return [
            BenchItem(
                item_id=row["prompt_id"],
                index=index,
                category="",
                turns=(row["prompt"],),
                messages=tuple(row.get("history") or ()),
            )
            for index, row in enumerate(rows)
        ]
    return _items_of(bundle, ITEMS)


def read_development(ctx: StageContext) -> list[BenchItem]:
    """Return the items of the stage's benchmark that are set aside for searches; none of them is evaluated."""
    bundle = _bundle(ctx)
    return [] if bundle is None or DEVELOPMENT not in bundle.files() else _items_of(bundle, DEVELOPMENT)


def _items_of(bundle: Artifact, name: str) -> list[BenchItem]:
    rows = pl.read_parquet(bundle.file(name)).sort("index").to_dicts()
    return [
        BenchItem(**{**row, "turns": tuple(row["turns"]), "messages": tuple(row["messages"] or ())}) for row in rows
    ]


def read_references(ctx: StageContext, reference_set: str | None = None) -> dict[str, tuple[str, ...]]:
    """Return item id -> reference answers by turn; of the bundle's own set if none is named.

    Raises ConfigError if the bundle lacks the set that is named.
    """
    frame = _table(ctx, REFERENCES)
    if frame is None:
        return {}
    if reference_set is not None:
        present = sorted(frame["reference_set"].unique().to_list())
        if reference_set not in present:
            raise ConfigError(
                "referenceSet", reference_set, f"the bundle has {', '.join(present) or 'none'}", "Name one of them."
            )
        frame = frame.filter(pl.col("reference_set") == reference_set)
    return _turns_by_item(frame)


def read_baseline(ctx: StageContext) -> dict[str, tuple[str, ...]]:
    """Return item id -> the baseline's answers by turn; empty if the bundle has none."""
    frame = _table(ctx, BASELINE)
    return {} if frame is None else _turns_by_item(frame)


def read_baseline_names(ctx: StageContext) -> dict[str, str]:
    """Return item id -> the model that gave the baseline's answer; empty if the bundle has no baseline."""
    frame = _table(ctx, BASELINE)
    return {} if frame is None else dict(zip(frame["item_id"], frame["generator"], strict=True))


def read_templates(ctx: StageContext) -> dict[str, str]:
    """Return the judge prompts of the bundle by name."""
    bundle = _bundle(ctx)
    if bundle is None or TEMPLATES not in bundle.files():
        return {}
    templates: dict[str, str] = json.loads(bundle.file(TEMPLATES).read_text(encoding="utf-8"))
    return templates


def read_regulariser(ctx: StageContext) -> pl.DataFrame | None:
    """Return the rows that regularise AlpacaEval's length control (see `records.BENCH_REGULARISER`); None for none."""
    return _table(ctx, REGULARISER)


def _bundle(ctx: StageContext) -> Artifact | None:
    role = next((role for role in sorted(ctx.config.inputs) if role.startswith(_ROLE)), None)
    return None if role is None else ctx.input(role)


def _table(ctx: StageContext, name: str) -> pl.DataFrame | None:
    bundle = _bundle(ctx)
    return None if bundle is None or name not in bundle.files() else pl.read_parquet(bundle.file(name))


def _turns_by_item(frame: pl.DataFrame) -> dict[str, tuple[str, ...]]:
    return {item: tuple(turns) for item, turns in zip(frame["item_id"], frame["turns"].to_list(), strict=True)}
