"""The perplexity stage: the log probability of each item's prompt under one model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.artifacts.parts import commit_when_complete, own_parts, pending_parts
from wrpo_engine.bundles.items import BenchItem, Message, read_items
from wrpo_engine.contract.evaluation import PerplexityParams
from wrpo_engine.errors import DataError
from wrpo_engine.hub.client import section_of
from wrpo_engine.hub.models import ResolvedModel, resolve_model, tokenizer_of
from wrpo_engine.sampling.backends import make_sampler
from wrpo_engine.sampling.limits import shared_context
from wrpo_engine.sampling.options import check_backend_options
from wrpo_engine.sampling.preflight import check_source
from wrpo_engine.sampling.requests import Part, parts_of
from wrpo_engine.sampling.sampler import PromptLogps, Sampler, SampleRequest, SamplerSettings
from wrpo_engine.sampling.streaming import running, stream_parts
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.text.chat import text_token_ids, with_one_bos
from wrpo_engine.text.last_turn import last_turn

log = logging.getLogger("wrpo_engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a model reads of an item's prompt."""

    ids: Sequence[int]
    start: int
    """Place of the first token that counts. The first of all has no log probability."""
    bytes: int
    """Of the text that counts, in UTF-8."""


def run(ctx: StageContext) -> StageResult:
    """Measure the pending parts of this shard, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, PerplexityParams)
    check_backend_options(params.backend, quantization=params.quantization, engine_args=ctx.config.runtime.engine_args)
    items = read_items(ctx)
    if not items:
        raise DataError(
            "there are no prompts whose perplexity could be measured",
            code="NoPrompts",
            field="evaluation.benchmarks",
            hint="Check the files of the benchmark's bundle, and limit; or set prompts.evaluation.prompts.",
        )
    parts = parts_of(items, params.prompts_per_part)
    names = [part.name for part in parts]
    model = resolve_model(params.model, ctx, field=ctx.model_field("model"))
    pending = frozenset(pending_parts(ctx, names))
    written = _measure_parts(ctx, params, model, parts, pending) if pending else 0
    metrics = commit_when_complete(ctx, names, details={"model": model.details(), "text": params.text}, measure=measure)
    if metrics.get("without_target"):
        log.info(
            "of %d prompts: %d without a log probability, because they have one token or exceed the model's context",
            int(metrics["prompts"]),
            int(metrics["without_target"]),
        )
    return StageResult(rows=written, metrics=metrics)


def _measure_parts(
    ctx: StageContext,
    params: PerplexityParams,
    model: ResolvedModel,
    parts: Sequence[Part[BenchItem]],
    pending: frozenset[str],
) -> int:
    tokenizer = tokenizer_of(model, field=section_of(model.field))
    check_source(model, tokenizer, params.backend, params.system_prompt)
    context = shared_context(model, ctx.config.runtime.context_limit)
    planned = [
        _Open(part, [reading_of(tokenizer, item, params) for item in part.rows], tokenizer.eos_token_id, context)
        for part in parts
    ]
    longest = max(len(reading.ids) for part in planned for reading in part.readings)
    settings = SamplerSettings(
        temperature=0.0,
        top_p=1.0,
        # vLLM generates a token after each prompt.
        max_tokens=1,
        stop_token_ids=(),
        dtype=params.dtype,
        quantization=params.quantization,
        engine_args=ctx.config.runtime.engine_args,
        max_model_length=longest + 1 if context is None else min(context, longest + 1),
        tensor_parallel_size=ctx.config.runtime.tensor_parallel_size,
        gpu_memory_utilization=ctx.config.runtime.gpu_memory_utilization,
        reads_prompts=True,
    )
    log.info("loading %s with %s", model.identity, params.backend)

    def load(poll: Callable[[], None]) -> Sampler:
        return make_sampler(params.backend, model, tokenizer, replace(settings, poll=poll))

    own = own_parts(ctx, parts)
    finished = sum(len(part.rows) for part in own if part.name not in pending)
    with running(ctx, model, load) as sampler:
        return stream_parts(
            ctx,
            [part for part in planned if part.name in pending],
            sampler.prompt_logps,
            backend=params.backend,
            finished=finished,
        )


def reading_of(tokenizer: Any, item: BenchItem, params: PerplexityParams) -> Reading:
    """Return what a model reads of an item: the conversation up to the user's first turn.

    Plain: the texts, separated by blank lines, all of which count. Chat: what the model reads before it answers, of
    which the turn's text counts.
    """
    messages: list[Message] = [*item.messages, {"role": "user", "content": item.turns[0]}]
    if params.text == "Chat":
        turn = last_turn(tokenizer, messages, params.system_prompt)
        return Reading(ids=turn.ids, start=turn.start, bytes=len(item.turns[0].encode()))
    text = "\n\n".join(message["content"] for message in messages)
    return Reading(ids=with_one_bos(tokenizer, text_token_ids(tokenizer, text)), start=0, bytes=len(text.encode()))


@dataclass(frozen=True, slots=True)
class Loss:
    """Sum of log probabilities of a prompt's tokens."""

    sum_logp: float
    tokens: int
    """Tokens that are in the sum."""
    skipped_eos: int


def loss_of(ids: Sequence[int], logps: Sequence[float], *, eos: int | None, start: int = 0) -> Loss:
    """Return the loss of a prompt's tokens from `start`; those with the value of EOS are left out and counted.

    `logps` are those of all tokens but the first.
    """
    counted = [(ids[place], logps[place - 1]) for place in range(max(start, 1), len(ids))]
    kept = [logp for token, logp in counted if token != eos]
    return Loss(math.fsum(kept), len(kept), len(counted) - len(kept))


@dataclass
class _Open:
    """A part with prompts that are not measured yet."""

    part: Part[BenchItem]
    readings: Sequence[Reading]
    eos: int | None
    context: int | None
    losses: dict[str, Loss] = field(default_factory=dict)
    _readings: dict[str, Reading] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item, reading in zip(self.part.rows, self.readings, strict=True):
            if len(reading.ids) < 2 or (self.context is not None and len(reading.ids) >= self.context):
                self.losses[item.item_id] = Loss(0.0, 0, 0)
            else:
                self._readings[item.item_id] = reading

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def requests(self) -> Sequence[SampleRequest]:
        return [
            SampleRequest(key=key, prompt_token_ids=reading.ids, num_samples=1, seed=0, group=self.part.index)
            for key, reading in self._readings.items()
        ]

    @property
    def num_rows(self) -> int:
        return len(self.part.rows)

    @property
    def num_prompts(self) -> int:
        return len(self.part.rows)

    @property
    def num_done(self) -> int:
        return len(self.losses)

    @property
    def is_complete(self) -> bool:
        return len(self.losses) == len(self.part.rows)

    def take(self, read: PromptLogps, /) -> Sequence[SampleRequest]:
        reading = self._readings[read.key]
        self.losses[read.key] = loss_of(reading.ids, read.logps, eos=self.eos, start=reading.start)
        return ()

    def frame(self) -> pl.DataFrame:
        rows = []
        for item, reading in zip(self.part.rows, self.readings, strict=True):
            loss = self.losses[item.item_id]
            rows.append((item.item_id, loss.sum_logp, loss.tokens, reading.bytes, loss.skipped_eos))
        return pl.DataFrame(rows, schema=records.PERPLEXITIES, orient="row")


def measure(parts: Iterable[pl.DataFrame]) -> dict[str, float]:
    """Return the metrics of a whole artifact.

    mean_loss: mean over prompts of the loss of a token, in nats. without_target: prompts without a log probability,
    which have one token or exceed the model's context.
    """
    prompts = tokens = size = skipped = measured = 0
    total = losses = 0.0
    for frame in parts:
        known = frame.filter(pl.col("tokens") > 0)
        prompts, measured = prompts + frame.height, measured + known.height
        tokens, size = tokens + int(known["tokens"].sum()), size + int(known["bytes"].sum())
        skipped += int(frame["skipped_eos"].sum())
        total += float(known["sum_logp"].sum())
        losses -= float((known["sum_logp"] / known["tokens"]).sum())
    return {
        "prompts": float(prompts),
        "tokens": float(tokens),
        "mean_loss": losses / measured if measured else 0.0,
        "nats_per_byte": -total / size if size else 0.0,
        "skipped_eos": float(skipped),
        "without_target": float(prompts - measured),
    }
