"""Attribution of preferred responses to models: how often and by which margin, for short and long prompts."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from wrpo_engine.artifacts import records

_QUARTILES = (0.25, 0.5, 0.75)


def attribution(rows: pl.DataFrame, models: Sequence[str]) -> pl.DataFrame:
    """Return the rows of attribution.parquet from (num_chars, source, gain) of each curated row.

    Prompts of one length are always in one cluster, so there may be fewer than four. Models that won nothing are
    listed with 0.
    """
    edges = [rows["num_chars"].quantile(each, "lower") for each in _QUARTILES] if rows.height else []
    numbered = rows.with_columns(cluster=sum((pl.col("num_chars") > edge for edge in edges), pl.lit(1)).cast(pl.String))
    named = pl.DataFrame({"source": list(models)}, schema={"source": pl.String})
    tables = [_table(numbered.with_columns(cluster=pl.lit("all")), named)]
    tables += [_table(part, named) for _, part in sorted(numbered.group_by("cluster"), key=lambda item: str(item[0]))]
    return pl.concat(tables)


def _table(rows: pl.DataFrame, named: pl.DataFrame) -> pl.DataFrame:
    total = max(rows.height, 1)
    counted = rows.group_by("source").agg(
        chosen=pl.len(),
        above=(pl.col("gain") > 0).sum(),
        mean_gain=pl.col("gain").mean(),
        median_gain=pl.col("gain").median(),
    )
    return (
        named.join(counted, on="source", how="left", maintain_order="left")
        .with_columns(pl.col("chosen", "above").fill_null(0))
        .with_columns(
            cluster=pl.lit(rows["cluster"][0] if rows.height else "all"),
            min_chars=pl.lit(rows["num_chars"].min(), pl.Int64),
            max_chars=pl.lit(rows["num_chars"].max(), pl.Int64),
            share=pl.col("chosen") / total,
        )
        .sort(["chosen", "source"], descending=[True, False])
        .select(pl.col(name).cast(kind) for name, kind in records.ATTRIBUTION.items())
    )


def metrics_of(table: pl.DataFrame, models: Sequence[str]) -> dict[str, float]:
    """Return how many rows each model's response won over all prompts, and its share."""
    overall = {row["source"]: row for row in table.filter(pl.col("cluster") == "all").iter_rows(named=True)}
    wins = {f"chosen_{name}": float(overall[name]["chosen"]) for name in models}
    return wins | {f"share_{name}": float(overall[name]["share"]) for name in models}
