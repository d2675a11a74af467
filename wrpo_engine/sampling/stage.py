"""The sample stage: responses of one model to every prompt. Parts are committed one by one, the manifest last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.artifacts.parts import commit_when_complete, own_parts, pending_parts
from wrpo_engine.config import SampleParams
from wrpo_engine.errors import DataError
from wrpo_engine.formats.prompt_columns import prompts_in, read_prompts
from wrpo_engine.hub.models import ResolvedModel, resolve_model, tokenizer_of
from wrpo_engine.sampling.backends import make_sampler
from wrpo_engine.sampling.counting import ResponseCounts
from wrpo_engine.sampling.limits import shared_context
from wrpo_engine.sampling.options import check_backend_options
from wrpo_engine.sampling.preflight import check_source, source_field
from wrpo_engine.sampling.requests import Draws, Limits, Part, PartRequests, Row, parts_of, requests_of
from wrpo_engine.sampling.sampler import FinishReason, Sampled, Sampler, SampleRequest
from wrpo_engine.sampling.settings import engine_args_of, length_for, settings_of
from wrpo_engine.sampling.streaming import running, stream_parts
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.text.chat import prompt_token_ids

log = logging.getLogger("wrpo_engine")

_NOTEWORTHY = ("truncated", "empty", "repeated", "skipped_prompt_too_long")


def run(ctx: StageContext) -> StageResult:
    """Sample the pending parts of this shard, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, SampleParams)
    field_name = source_field(params.source)
    engine_args = engine_args_of(params, ctx.config.runtime)
    check_backend_options(params.backend, quantization=params.quantization, engine_args=engine_args)
    parts = parts_of(_prompts(ctx, params), params.prompts_per_part)
    model = resolve_model(params.model, ctx, field=f"{field_name}.model")
    written = _sample_parts(ctx, params, model, parts, field_name=field_name)
    metrics = commit_when_complete(
        ctx, [part.name for part in parts], details={"model": model.details()}, measure=measure
    )
    if noteworthy := {name: int(metrics[name]) for name in _NOTEWORTHY if metrics.get(name)}:
        shown = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in noteworthy.items())
        log.info("of %d responses: %s; all of them are in the artifact", int(metrics["samples"]), shown)
    return StageResult(rows=written, metrics=metrics)


def _prompts(ctx: StageContext, params: SampleParams) -> list[Row]:
    prompts = ctx.input("prompts")
    rows = read_prompts([prompts.file(f"{part}.parquet") for part in params.parts])
    if rows.is_empty():
        names = ", ".join(params.parts)
        raise DataError(
            f"stage sample/{params.source} has no prompts: its parts ({names}) are empty",
            code="NoPrompts",
            field="prompts.sftFraction",
            hint="sftFraction 1 leaves no preference prompts, 0 none for SFT: choose a value between, or raise limit.",
        )
    return list(zip(rows["prompt_id"].to_list(), prompts_in(rows), strict=True))


def _sample_parts(
    ctx: StageContext,
    params: SampleParams,
    model: ResolvedModel,
    parts: Sequence[Part[Row]],
    *,
    field_name: str,
) -> int:
    """Sample the pending parts and publish each when its last prompt is done; return the rows written."""
    pending = frozenset(pending_parts(ctx, [part.name for part in parts]))
    if not pending:
        return 0
    tokenizer = tokenizer_of(model, field=field_name)
    check_source(model, tokenizer, params.backend, params.system_prompt)
    context = shared_context(model, params.max_model_length)
    limits = Limits(context=context, skip_too_long=params.on_prompt_too_long == "Skip", model=model.identity)
    draws = Draws(num_samples=params.samples_per_prompt, seed=params.seed, seed_model=seed_model(params))
    planned: list[PartRequests] = []
    longest = 0
    # Every prompt of every shard is encoded before the model is loaded: one that is too long fails at once.
    for part in parts:
        plan = requests_of(
            part,
            encode=lambda prompt: prompt_token_ids(tokenizer, prompt, params.system_prompt),
            draws=draws,
            limits=limits,
        )
        longest = max([longest, *(len(request.prompt_token_ids) for request in plan.requests)])
        if part.name in pending:
            planned.append(plan)
    finished = sum(len(part.rows) for part in own_parts(ctx, parts) if part.name not in pending)
    settings = settings_of(
        params,
        ctx.config.runtime,
        model,
        tokenizer,
        max_length=length_for(longest + params.max_tokens, context),
    )
    log.info("loading %s with %s", model.identity, params.backend)
    total = finished + sum(len(plan.part.rows) for plan in planned)
    ctx.progress.update(finished, total, message="loading the model")

    def load(poll: Callable[[], None]) -> Sampler:
        return make_sampler(params.backend, model, tokenizer, replace(settings, poll=poll))

    with running(ctx, model, load) as sampler:
        return sample_parts(ctx, params, planned, sampler, finished=finished)


def seed_model(params: SampleParams) -> str:
    """Return the model's name in seeds. A trained target is `target`: its weights differ by stage hash anyway."""
    return f"{params.model.name}@{params.model.revision}" if params.model.name is not None else params.source


@dataclass
class _Open:
    """A part with unfinished prompts. Skipped prompts count as done with their part."""

    planned: PartRequests
    source: str
    answers: dict[str, Sampled] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.planned.part.name

    @property
    def requests(self) -> Sequence[SampleRequest]:
        return self.planned.requests

    @property
    def num_rows(self) -> int:
        return self.planned.num_rows

    @property
    def num_prompts(self) -> int:
        return len(self.planned.part.rows)

    @property
    def num_done(self) -> int:
        return self.num_prompts if self.is_complete else len(self.answers)

    @property
    def is_complete(self) -> bool:
        return len(self.answers) == len(self.planned.requests)

    def take(self, sampled: Sampled, /) -> Sequence[SampleRequest]:
        self.answers[sampled.key] = sampled
        return ()

    def frame(self) -> pl.DataFrame:
        return part_frame(self.source, self.planned.part, self.answers)


def sample_parts(
    ctx: StageContext,
    params: SampleParams,
    planned: Sequence[PartRequests],
    sampler: Sampler,
    *,
    finished: int = 0,
) -> int:
    """Sample and publish all parts; `finished` prompts of this shard were finished by an earlier attempt."""
    parts = [_Open(plan, params.source) for plan in planned]
    return stream_parts(ctx, parts, sampler.sample, backend=params.backend, finished=finished)


def part_frame(source: str, part: Part[Row], answers: dict[str, Sampled]) -> pl.DataFrame:
    """Return a part's rows in prompt and sample order; a prompt without responses was too long."""
    rows: list[tuple[str, str, int, str, int, str, int]] = []
    for prompt_id, _ in part.rows:
        sampled = answers.get(prompt_id)
        if sampled is None:
            rows.append((prompt_id, source, 0, "", 0, FinishReason.PROMPT_TOO_LONG.value, 0))
            continue
        rows += [
            (prompt_id, source, index, sample.text, sample.num_tokens, sample.finish_reason.value, sample.seed)
            for index, sample in enumerate(sampled.samples)
        ]
    return pl.DataFrame(rows, schema=records.SAMPLES, orient="row")


def measure(parts: Iterable[pl.DataFrame]) -> dict[str, float]:
    """Return the metrics of a whole samples artifact.

    truncated: responses that hit max_tokens or the context. empty: without any character but white space. repeated:
    responses to a prompt with the text of an earlier one to it. skipped_prompt_too_long: prompts without a response.
    """
    counts, repeated = ResponseCounts(), 0
    for frame in parts:
        given = counts.add(frame)
        # All responses to a prompt are in one part.
        repeated += given.height - given.select("prompt_id", "text").n_unique()
    return {**counts.metrics("samples"), "repeated": float(repeated)}
