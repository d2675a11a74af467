"""The joint stage: answers of several small models that choose each token together, in parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from wrpo_engine.answering.dialogue import conversation
from wrpo_engine.answering.measuring import Measured
from wrpo_engine.artifacts import records
from wrpo_engine.artifacts.parts import commit_when_complete, count_progress, own_parts, pending_parts
from wrpo_engine.bundles.items import BenchItem, read_items
from wrpo_engine.contract.benchmarks import Protocol
from wrpo_engine.contract.merging import JointParams
from wrpo_engine.errors import DataError
from wrpo_engine.hub.models import ResolvedModel, resolve_model
from wrpo_engine.joint.decoding import Answer, Decoder, answer, decoder_of, prompts_of
from wrpo_engine.joint.members import load_members
from wrpo_engine.process.hang_watch import HangWatch
from wrpo_engine.sampling.requests import Part, parts_of
from wrpo_engine.sampling.sampler import FinishReason
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")


def run(ctx: StageContext) -> StageResult:
    """Answer the pending parts of this shard, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, JointParams)
    items = read_items(ctx)
    if not items:
        raise DataError(
            f"the {params.benchmark} benchmark of {params.system} has no items",
            code="NoPrompts",
            field="evaluation.benchmarks",
            hint="Check the files of its bundle, and limit.",
        )
    parts = parts_of(items, params.prompts_per_part)
    names = [part.name for part in parts]
    models = [resolve_model(member, ctx, field=_field(ctx, params, i)) for i, member in enumerate(params.members)]
    todo = pending_parts(ctx, names)
    written = _answer_parts(ctx, params, models, parts, todo) if todo else 0
    measured = Measured(ctx, _protocol(params), items, params.system)
    details: dict[str, Any] = {
        "system": params.system,
        "joint": {"method": params.method, "members": [model.details() for model in models]},
    }
    metrics = commit_when_complete(
        ctx, names, details=details, measure=measured.measure, further=measured.publish_native
    )
    return StageResult(rows=written, metrics=metrics)


def _field(ctx: StageContext, params: JointParams, index: int) -> str:
    name = params.names[index] if index < len(params.names) else str(index)
    return ctx.model_field(f"members[{index}]", f"evaluation.systems[{params.system}].joint.members[{name}]")


def _protocol(params: JointParams) -> Protocol | None:
    match params.benchmark:
        case "HeldOutReward" | "Custom":
            return None
        case kind:
            return kind


def _answer_parts(
    ctx: StageContext,
    params: JointParams,
    models: Sequence[ResolvedModel],
    parts: Sequence[Part[BenchItem]],
    todo: Sequence[str],
) -> int:
    watch = HangWatch(f"joint decoding of {params.system}", ctx.config.runtime.hang_timeout_seconds, ctx.environ)
    own = own_parts(ctx, parts)
    on_progress = count_progress(ctx, {part.name: len(part.rows) for part in own}, todo)

    def poll() -> None:
        watch.beat()
        ctx.stop.raise_if_requested()

    written = 0
    log.info("loading %d members of %s", len(models), params.system)
    with watch:
        decoder = decoder_of(load_members(models, params.dtype), params)
        for part in own:
            if part.name not in todo:
                continue
            rows: list[tuple[object, ...]] = []
            for item in part.rows:
                rows += item_rows(decoder, params, item, poll)
                on_progress(1)
            frame = pl.DataFrame(rows, schema=records.ANSWERS, orient="row")
            ctx.output.publish(part.name, frame.write_parquet)
            written += frame.height
    return written


def item_rows(
    decoder: Decoder, params: JointParams, item: BenchItem, poll: Callable[[], None]
) -> list[tuple[object, ...]]:
    """Return the rows of an item's answers, turn by turn; one whose prompt leaves no room for an answer is empty."""
    answers: list[str] = []
    rows: list[tuple[object, ...]] = []
    for turn in range(len(item.turns)):
        found: Answer | None = None
        if len(answers) == turn:
            prompts = prompts_of(decoder.members, conversation(item, answers), params.system_prompt)
            if _fits(decoder, params, item, prompts):
                found = answer(decoder, prompts, params.max_tokens, poll)
                answers.append(found.text)
        rows.append(_row(item, turn, found))
    return rows


def _fits(decoder: Decoder, params: JointParams, item: BenchItem, prompts: Sequence[Sequence[int]]) -> bool:
    for member, ids in zip(decoder.members, prompts, strict=True):
        if member.context is not None and len(ids) >= member.context:
            if params.on_prompt_too_long == "Fail":
                raise DataError(
                    f"item {item.item_id} has {len(ids)} tokens with the chat template, but the context of "
                    f"{member.resolved.identity} holds {member.context} for prompt and answer together",
                    code="PromptTooLong",
                    field=member.resolved.field,
                    hint="Use shorter prompts, or members with longer contexts.",
                )
            return False
    return True


def _row(item: BenchItem, turn: int, found: Answer | None) -> tuple[object, ...]:
    if found is None:
        return (item.item_id, turn, 0, "", 0, FinishReason.PROMPT_TOO_LONG.value, 0, 0, 0)
    reason = FinishReason.STOP if found.has_ended else FinishReason.LENGTH
    size = len(found.ids) + found.has_ended
    return (item.item_id, turn, 0, found.text, size, reason.value, 0, found.prompt_tokens, 0)
