"""What decides a selection: perplexities of the prompt, ranks of the answers, their scores, or chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from wrpo_engine.artifacts import Artifact, records
from wrpo_engine.artifacts.parts import PARTS
from wrpo_engine.contract.evaluation import SelectParams
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.formats.columns import Schema, read_columns
from wrpo_engine.seeds import seed_of
from wrpo_engine.selecting.aggregation import scores_of
from wrpo_engine.selecting.members import Member
from wrpo_engine.stage import StageContext

Criterion: TypeAlias = Callable[[str, Sequence[int]], list[float | None]]
"""(item id, indices of the competing members) -> a score of each member, higher is better; None: it has none."""


def criterion_of(ctx: StageContext, params: SelectParams, members: Sequence[Member]) -> Criterion:
    """Return what decides; ConfigError unless the stage has the inputs that it needs."""
    wanted = {"Perplexity": len(members), "Reward": len(members), "PairRM": 1, "Random": 0}[params.by]
    if len(params.criteria) != wanted:
        raise ConfigError(
            "criteria",
            ", ".join(params.criteria) or "none",
            f"select by {params.by} with {len(members)} members needs {wanted} roles",
            "Name one perplexity or grades of each member in their order, one rank for PairRM, none for Random.",
        )
    if params.by == "Random":
        return lambda item_id, competing: _drawn(params.seed, item_id, competing, len(members))
    artifacts = [ctx.input(role) for role in params.criteria]
    if params.by == "Perplexity":
        return _by_perplexity(params, artifacts, members)
    return _by_rank(params, artifacts[0], members) if params.by == "PairRM" else _by_reward(params, artifacts, members)


def _drawn(seed: int, item_id: str, competing: Sequence[int], members: int) -> list[float | None]:
    """Return the scores of a draw: 1 for the drawn member, the same on every machine, none for the others."""
    drawn = competing[seed_of("select", seed, item_id) % len(competing)]
    return [1.0 if index == drawn else None for index in range(members)]


def _by_perplexity(params: SelectParams, artifacts: Sequence[Artifact], members: Sequence[Member]) -> Criterion:
    unit = "tokens" if params.normalise == "PerToken" else "bytes"
    means = [
        {
            row["item_id"]: _mean_logp(row, unit, role)
            for row in _unique(_read(artifact, records.PERPLEXITIES), ("item_id",), role).iter_rows(named=True)
        }
        for artifact, role in zip(artifacts, params.criteria, strict=True)
    ]

    def score(item_id: str, _: Sequence[int]) -> list[float | None]:
        found: list[float | None] = []
        for member, role, mean in zip(members, params.criteria, means, strict=True):
            if item_id not in mean:
                raise _missing(f"{role} has no perplexity of item_id {item_id}", member)
            found.append(mean[item_id])
        return found

    return score


def _mean_logp(row: Mapping[str, Any], unit: str, role: str) -> float | None:
    """Return the mean log probability of a token or byte: minus the loss; None for a prompt without a target."""
    logp: float = row["sum_logp"]
    size: int = row[unit]
    if not math.isfinite(logp):
        raise _not_finite(logp, f"sum_logp of item_id {row['item_id']}", role)
    return logp / size if row["tokens"] and size else None


def _by_reward(params: SelectParams, artifacts: Sequence[Artifact], members: Sequence[Member]) -> Criterion:
    means = [
        _mean_grades(_read(artifact, records.GRADES), role)
        for artifact, role in zip(artifacts, params.criteria, strict=True)
    ]

    def score(item_id: str, competing: Sequence[int]) -> list[float | None]:
        for index in competing:
            if item_id not in means[index] and item_id not in members[index].skipped:
                raise _missing(f"{params.criteria[index]} has no score of item_id {item_id}", members[index])
        return [mean.get(item_id) for mean in means]

    return score


def _mean_grades(grades: pl.DataFrame, role: str) -> dict[str, float]:
    """Return item id -> mean over its turns and samples."""
    _unique(grades, ("item_id", "sample_index", "turn"), role)
    bad = grades.filter(~pl.col("score").is_finite())
    if bad.height:
        raise _not_finite(bad["score"][0], f"score of item_id {bad['item_id'][0]}", role)
    means = grades.group_by("item_id", maintain_order=True).agg(pl.col("score").mean())
    return dict(zip(means["item_id"], means["score"], strict=True))


def _by_rank(params: SelectParams, artifact: Artifact, members: Sequence[Member]) -> Criterion:
    (role,) = params.criteria
    ranks = _unique(_read(artifact, records.RANKS), ("item_id", "left", "right"), role)
    rows: Iterable[tuple[str, str, str, float]] = ranks.select("item_id", "left", "right", "logit").iter_rows()
    logits = {(item_id, left, right): logit for item_id, left, right, logit in rows}

    def score(item_id: str, competing: Sequence[int]) -> list[float | None]:
        matrix = np.zeros((len(competing), len(competing)))
        for row, left in enumerate(competing):
            for column, right in enumerate(competing):
                if row == column:
                    continue
                logit = logits.get((item_id, members[left].role, members[right].role))
                if logit is None:
                    raise _missing(
                        f"{role} has no logit of item_id {item_id} against {members[right].role}", members[left]
                    )
                if not math.isfinite(logit):
                    raise _not_finite(logit, f"logit of item_id {item_id}", role)
                matrix[row, column] = logit
        found: list[float | None] = [None] * len(members)
        for index, value in zip(competing, scores_of(matrix, params.aggregation), strict=True):
            found[index] = float(value)
        return found

    return score


def _read(artifact: Artifact, schema: Schema) -> pl.DataFrame:
    names = artifact.files(PARTS)
    return read_columns(artifact.fetch_all(names), schema) if names else pl.DataFrame(schema=dict(schema))


def _unique(rows: pl.DataFrame, key: Sequence[str], role: str) -> pl.DataFrame:
    """Return the rows; DataError names the first key that occurs twice."""
    double = rows.filter(rows.select(*key).is_duplicated())
    if double.height:
        shown = ", ".join(f"{name} {double[name][0]}" for name in key)
        raise DataError(f"{role} has two rows of {shown}", code="InputsDisagree", hint=_HINT)
    return rows


_HINT = "Select among the answers that the perplexities, ranks or scores were computed from, of one benchmark."


def _missing(what: str, member: Member) -> DataError:
    return DataError(f"{what} for the member {member.name} ({member.role})", code="InputsDisagree", hint=_HINT)


def _not_finite(value: float, what: str, role: str) -> DataError:
    return DataError(
        f"the {what} in {role} is {value}, not a finite number",
        code="CriterionNotFinite",
        hint="Check the model of that stage on this item; half precision may overflow (try float32).",
    )
