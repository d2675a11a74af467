"""Items, references, baseline and templates are read from a bundle, or from the held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from wrpo_engine.artifacts import records
from wrpo_engine.bundles.items import (
    BenchItem,
    read_baseline,
    read_items,
    read_references,
    read_regulariser,
    read_templates,
)
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError

GRADE = {"stage": "grade", "reward": {"name": "/reward"}, "answers": "answers/a--b"}


def commit(make_ctx: Any, stage: str, files: Mapping[str, Any]) -> ArtifactRef:
    """Commit files below the address of a stage."""
    ctx = make_ctx(GRADE, stage=stage, hash_="a" * 16)
    for name, content in files.items():
        write = content.write_parquet if isinstance(content, pl.DataFrame) else writer_of(content)
        ctx.output.publish(name, write)
    ctx.output.commit(files=list(files))
    return ArtifactRef(stage=stage, hash="a" * 16)


def writer_of(text: str) -> Any:
    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def item(item_id: str, index: int, **more: Any) -> dict[str, Any]:
    row = {"item_id": item_id, "index": index, "category": "math", "turns": ["hi"], "messages": [], "temperature": None}
    return row | more


def test_items_of_a_bundle_are_in_the_order_of_their_index(make_ctx: Any) -> None:
    history = [{"role": "system", "content": "be brief"}]
    rows = [item("b", 1, turns=["one", "two"], temperature=0.7), item("a", 0, messages=history)]
    bundle = commit(
        make_ctx,
        "bench/mt-bench",
        {
            "items.parquet": pl.DataFrame(rows, schema=records.BENCH_ITEMS),
            "references.parquet": pl.DataFrame(
                [{"item_id": "a", "reference_set": "gpt-4", "turns": ["4"]}], schema=records.BENCH_REFERENCES
            ),
            "baseline.parquet": pl.DataFrame(
                [{"item_id": "a", "generator": "x", "turns": ["yes"]}], schema=records.BENCH_BASELINE
            ),
            "templates.json": json.dumps({"judge": "Which is better?"}),
        },
    )
    ctx = make_ctx(GRADE, {"bench/mt-bench": bundle}, stage="grade/x")
    assert read_items(ctx) == [
        BenchItem(item_id="a", index=0, category="math", turns=("hi",), messages=(history[0],)),
        BenchItem(item_id="b", index=1, category="math", turns=("one", "two"), temperature=0.7),
    ]
    assert read_references(ctx) == read_references(ctx, "gpt-4") == {"a": ("4",)}
    assert read_baseline(ctx) == {"a": ("yes",)}
    assert read_templates(ctx) == {"judge": "Which is better?"}
    assert read_regulariser(ctx) is None
    with pytest.raises(ConfigError, match="referenceSet is 'gpt-5': the bundle has gpt-4"):
        read_references(ctx, "gpt-5")


def test_a_benchmark_without_a_bundle_has_the_held_out_prompts_as_items(make_ctx: Any) -> None:
    frame = pl.DataFrame({"prompt_id": ["p2", "p1"], "prompt": ["Why?", "How?"]}, schema=records.PROMPTS)
    ctx = make_ctx(GRADE, {"prompts": commit(make_ctx, "prepare", {"evaluation.parquet": frame})}, stage="grade/x")
    assert [(entry.item_id, entry.index, entry.turns) for entry in read_items(ctx)] == [
        ("p2", 0, ("Why?",)),
        ("p1", 1, ("How?",)),
    ]
    assert [read_references(ctx), read_baseline(ctx), read_templates(ctx)] == [{}, {}, {}]
    assert read_regulariser(ctx) is None
