"""The rank stage: PairRM's logit of all ordered pairs of members' answers to each item, in parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.artifacts.parts import commit_when_complete, count_progress, own_parts, part_name, pending_parts
from wrpo_engine.bundles.items import BenchItem, read_items
from wrpo_engine.contract.evaluation import RankParams
from wrpo_engine.errors import DataError
from wrpo_engine.hub.models import ResolvedModel, resolve_model
from wrpo_engine.selecting.members import Member, competing, read_members
from wrpo_engine.selecting.pairrm_encoding import FIELD, Budget
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.text.conversations import conversation, prompt_text

if TYPE_CHECKING:
    from wrpo_engine.selecting.pairrm import OnProgress, PairRanker

_SCHEMA = records.RANKS | {"cut_prompt": pl.Boolean, "tokens": pl.Int64, "padding": pl.Int64}


def run(ctx: StageContext) -> StageResult:
    """Compare the pending parts of this shard, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, RankParams)
    items = read_items(ctx)
    members = read_members(ctx, params.members, items)
    size = params.prompts_per_part
    names = [part_name(index) for index in range(max(1, -(-len(items) // size)))]
    slices = {name: items[index * size : (index + 1) * size] for index, name in enumerate(names)}
    todo = pending_parts(ctx, names)
    written = _rank_parts(ctx, params, members, slices, todo) if todo else 0
    details = {"ranker": _ranker(ctx, params).details()}
    metrics = commit_when_complete(ctx, names, details=details, measure=measure)
    return StageResult(rows=written, metrics=metrics)


def _ranker(ctx: StageContext, params: RankParams) -> ResolvedModel:
    return resolve_model(params.ranker, ctx, field=ctx.model_field("ranker", FIELD))


def _rank_parts(
    ctx: StageContext,
    params: RankParams,
    members: Sequence[Member],
    slices: dict[str, list[BenchItem]],
    todo: Sequence[str],
) -> int:
    from wrpo_engine.selecting.pairrm import PairRanker

    ranker = PairRanker(
        _ranker(ctx, params),
        Budget(params.max_source_tokens, params.max_length, params.max_candidate_tokens),
        batch_tokens=ctx.config.runtime.batch_tokens,
        dtype=params.dtype,
    )
    own = own_parts(ctx, list(slices))
    sizes = {name: sum(_num_pairs(members, item) for item in slices[name]) for name in own}
    on_progress = count_progress(ctx, sizes, todo)
    written = 0
    for name in todo:
        frame = rank_items(ranker, slices[name], members, on_progress)
        ctx.output.publish(name, frame.write_parquet)
        written += frame.height
    return written


def _num_pairs(members: Sequence[Member], item: BenchItem) -> int:
    competitors = len(competing(members, item.item_id))
    return competitors * (competitors - 1)


def rank_items(
    ranker: PairRanker, items: Sequence[BenchItem], members: Sequence[Member], on_progress: OnProgress
) -> pl.DataFrame:
    """Return the logits of all ordered pairs of the members that answered each item, in the order of the members.

    DataError names item and members of a logit that is no finite number.
    """
    competitors = [competing(members, item.item_id) for item in items]
    texts = [
        (item_text(item), [answer_text(members[index], item) for index in indices])
        for item, indices in zip(items, competitors, strict=True)
    ]
    rows: list[dict[str, Any]] = []
    for item, indices, compared in zip(items, competitors, ranker.compare(texts, on_progress), strict=True):
        for pair in compared.comparisons:
            left, right = (members[indices[place]].role for place in (pair.left, pair.right))
            row = {
                "item_id": item.item_id,
                "left": left,
                "right": right,
                "logit": pair.logit,
                "cut_left": compared.cut[pair.left],
                "cut_right": compared.cut[pair.right],
                "cut_prompt": compared.prompt_cut,
                "tokens": pair.tokens,
                "padding": pair.padding,
            }
            _check_finite(ranker, row)
            rows.append(row)
    return pl.DataFrame(rows, schema=_SCHEMA)


def _check_finite(ranker: PairRanker, row: Mapping[str, Any]) -> None:
    if not math.isfinite(row["logit"]):
        raise DataError(
            f"ranker {ranker.identity} gives {row['logit']} for item_id {row['item_id']}, {row['left']} against "
            f"{row['right']} ({row['tokens']} tokens)",
            code="RankNotFinite",
            field=ranker.field,
            hint="Check the model on these texts; half precision may overflow (try float32). Or use another.",
        )


def item_text(item: BenchItem) -> str:
    """Return an item's prompt as one text: that of its only turn, else all messages of the user with their roles."""
    return prompt_text(conversation([*item.messages, *({"role": "user", "content": turn} for turn in item.turns)]))


def answer_text(member: Member, item: BenchItem) -> str:
    """Return a member's answers to all turns of an item as one text."""
    return "\n\n".join(member.texts.get(item.item_id, ()))


def measure(parts: Iterable[pl.DataFrame]) -> dict[str, float]:
    """Return the metrics of a whole rank artifact.

    cut_answers: share of the compared texts that were truncated. consistent: share of pairs for which both orders
    prefer the same answer.
    """
    rows = pl.concat(list(parts))
    metrics = {"pairs": float(rows.height), "items": float(rows["item_id"].n_unique())}
    if not rows.height:
        return metrics
    cut = int(rows["cut_left"].sum()) + int(rows["cut_right"].sum())
    metrics["cut_answers"] = cut / (2 * rows.height)
    metrics["cut_prompts"] = int(rows.unique("item_id")["cut_prompt"].sum()) / metrics["items"]
    tokens, padding = int(rows["tokens"].sum()), int(rows["padding"].sum())
    metrics |= {"tokens": float(tokens), "padding_share": padding / (tokens + padding)}
    swapped = rows.select("item_id", left="right", right="left", other="logit")
    both = rows.join(swapped, on=["item_id", "left", "right"])
    metrics["consistent"] = int((both["logit"] * both["other"] < 0).sum()) / rows.height
    return metrics
