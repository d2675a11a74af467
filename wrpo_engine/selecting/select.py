"""The select stage: for each item the answers of one member."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.artifacts.parts import commit_when_complete, part_name, pending_parts
from wrpo_engine.bundles.items import BenchItem, read_items
from wrpo_engine.contract.evaluation import SelectParams
from wrpo_engine.selecting.choice import Choice, choose
from wrpo_engine.selecting.criteria import Criterion, criterion_of
from wrpo_engine.selecting.members import Member, competing, read_members
from wrpo_engine.stage import StageContext, StageResult

_SCHEMA = records.ANSWERS | records.SELECTED
_PART = part_name(0)


def run(ctx: StageContext) -> StageResult:
    """Choose a member for every item and commit its answers."""
    params = ctx.config.params
    assert isinstance(params, SelectParams)
    items = read_items(ctx)
    members = read_members(ctx, params.members, items)
    written = 0
    if pending_parts(ctx, [_PART]):
        frame = select_items(items, members, criterion_of(ctx, params, members))
        ctx.output.publish(_PART, frame.write_parquet)
        written = frame.height

    def measured(parts: Iterable[pl.DataFrame]) -> dict[str, float]:
        return measure(parts, members)

    details = {"select": {"by": params.by, "members": [member.name for member in members]}}
    return StageResult(rows=written, metrics=commit_when_complete(ctx, [_PART], details=details, measure=measured))


def select_items(items: Sequence[BenchItem], members: Sequence[Member], criterion: Criterion) -> pl.DataFrame:
    """Return all answers of the chosen member of each item, in the order of the items.

    A member that could not read an item's prompt is chosen only if no other could.
    """
    by_item = [dict(_grouped(member.answers)) for member in members]
    frames = [pl.DataFrame(schema=_SCHEMA)]
    for item in items:
        competitors = competing(members, item.item_id)
        choice = choose(criterion(item.item_id, competitors), competitors)
        answers = by_item[choice.member][item.item_id]
        frames.append(_with_choice(answers, members[choice.member], choice))
    return pl.concat(frames)


def _grouped(answers: pl.DataFrame) -> Iterable[tuple[str, pl.DataFrame]]:
    return ((str(key[0]), rows) for key, rows in answers.group_by("item_id", maintain_order=True))


def _with_choice(answers: pl.DataFrame, member: Member, choice: Choice) -> pl.DataFrame:
    values = {"member": member.name, "criterion": choice.criterion, "margin": choice.margin}
    return answers.with_columns(pl.lit(values[name], dtype=kind).alias(name) for name, kind in records.SELECTED.items())


def measure(parts: Iterable[pl.DataFrame], members: Sequence[Member]) -> dict[str, float]:
    """Return the metrics of a selection.

    share_<member>: share of the items for which it was chosen. mean_margin: over the items with a second best member.
    undecided: items for which no member has a score, e.g. prompts of one token; the first member was taken. skipped:
    items whose chosen answer is empty, because no member could read the prompt.
    """
    rows = pl.concat(list(parts)).unique("item_id", maintain_order=True)
    metrics = {"items": float(rows.height)}
    if not rows.height:
        return metrics
    for member in members:
        metrics[f"share_{member.name}"] = int((rows["member"] == member.name).sum()) / rows.height
    metrics["undecided"] = float(rows["criterion"].null_count())
    unread = set.intersection(*(set(member.skipped) for member in members))
    metrics["skipped"] = float(rows["item_id"].is_in(list(unread)).sum())
    margins = rows["margin"].drop_nulls()
    if margins.len():
        metrics["mean_margin"] = float(margins.sum()) / margins.len()
    return metrics
