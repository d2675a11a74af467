"""The answer and mixture stages: answers of one model to the items of a benchmark, turn by turn.

Parts are committed one by one, the native files of the benchmark's own tools at the end, the manifest last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from wrpo_engine.answering.dialogue import PartDialogues, Rules, longest_prompt
from wrpo_engine.answering.measuring import Measured
from wrpo_engine.answering.reading import Reader, references_of
from wrpo_engine.artifacts.parts import commit_when_complete, own_parts, pending_parts
from wrpo_engine.bundles.items import BenchItem, read_items
from wrpo_engine.contract.benchmarks import Protocol
from wrpo_engine.contract.evaluation import AnswerParams, MixtureParams
from wrpo_engine.errors import DataError
from wrpo_engine.hub.client import section_of
from wrpo_engine.hub.models import ResolvedModel, resolve_model, tokenizer_of
from wrpo_engine.sampling.backends import make_sampler
from wrpo_engine.sampling.limits import shared_context
from wrpo_engine.sampling.options import check_backend_options
from wrpo_engine.sampling.preflight import check_source
from wrpo_engine.sampling.requests import Part, parts_of
from wrpo_engine.sampling.sampler import Sampler
from wrpo_engine.sampling.settings import engine_args_of, length_for, settings_of
from wrpo_engine.sampling.streaming import running, stream_parts
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")

Params: TypeAlias = AnswerParams | MixtureParams
HELD_OUT_SEED = "evaluation"
"""In place of the model's name in seeds of answers to held-out prompts: all models share a prompt's seed, so that they
differ by their weights alone."""
_NOTEWORTHY = ("truncated", "empty", "skipped_prompt_too_long", "references_cut")


def run(ctx: StageContext) -> StageResult:
    """Answer the pending parts of this shard, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, AnswerParams | MixtureParams)
    engine_args = engine_args_of(params, ctx.config.runtime)
    check_backend_options(params.backend, quantization=params.quantization, engine_args=engine_args)
    items = _items(ctx, params)
    parts = parts_of(items, params.prompts_per_part)
    names = [part.name for part in parts]
    model = resolve_model(params.model, ctx, field=ctx.model_field("model"))
    pending = frozenset(pending_parts(ctx, names))
    written = _answer_parts(ctx, params, model, parts, pending) if pending else 0
    measured = Measured(ctx, _protocol(params), items, params.system)
    metrics = commit_when_complete(
        ctx, names, details=_details(params, model), measure=measured.measure, further=measured.publish_native
    )
    if noteworthy := {name: int(metrics[name]) for name in _NOTEWORTHY if metrics.get(name)}:
        shown = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in noteworthy.items())
        log.info("of %d answers: %s; all of them are in the artifact", int(metrics["answers"]), shown)
    return StageResult(rows=written, metrics=metrics)


def _protocol(params: Params) -> Protocol | None:
    """Return the protocol of the benchmark; None for those without separate tools."""
    match params.benchmark:
        case "HeldOutReward" | "Custom":
            return None
        case kind:
            return kind


def _details(params: Params, model: ResolvedModel) -> Mapping[str, Any]:
    details: dict[str, Any] = {"model": model.details(), "system": params.system}
    if isinstance(params, MixtureParams):
        details["references"] = list(params.references)
    return details


def _items(ctx: StageContext, params: Params) -> list[BenchItem]:
    items = read_items(ctx)
    if items:
        return items
    if params.benchmark == "HeldOutReward":
        raise DataError(
            "there are no held-out prompts to evaluate on",
            code="NoPrompts",
            field="prompts.evaluation.prompts",
            hint="Set prompts.evaluation.prompts to at least 1, or evaluation.enabled: false.",
        )
    raise DataError(
        f"the {params.benchmark} benchmark of {params.system} has no items",
        code="NoPrompts",
        field="evaluation.benchmarks",
        hint="Check the files of its bundle, and limit.",
    )


def _answer_parts(
    ctx: StageContext,
    params: Params,
    model: ResolvedModel,
    parts: Sequence[Part[BenchItem]],
    pending: frozenset[str],
) -> int:
    """Answer the pending parts and publish each when its last answer is there; return the rows written."""
    tokenizer = tokenizer_of(model, field=section_of(model.field))
    check_source(model, tokenizer, params.backend, params.system_prompt)
    context = shared_context(model, ctx.config.runtime.context_limit)
    items = [item for part in parts for item in part.rows]
    reader = Reader(tokenizer, params, references_of(ctx, params, items))
    limits = _Limits(params, model, context)
    rules = Rules(
        read=reader.read,
        too_long=limits.too_long,
        num_samples=params.samples_per_prompt,
        seed=params.seed,
        seed_model=seed_model(params),
        uses_item_temperature=params.uses_item_temperature,
    )
    # The prompts of all shards are read before the model is loaded: one that is too long fails at once.
    planned = [PartDialogues(part, rules, context) for part in parts]
    limits.require_one_that_fits(planned)
    needed = max(longest_prompt(part.part.rows, rules, params.max_tokens, part.requests) for part in planned)
    settings = settings_of(
        params,
        ctx.config.runtime,
        model,
        tokenizer,
        max_length=length_for(needed + params.max_tokens, context),
    )
    own = [part for part in planned if part.name in pending]
    for part in own:
        part.context = settings.max_model_length
    log.info("loading %s with %s", model.identity, params.backend)

    def load(poll: Callable[[], None]) -> Sampler:
        return make_sampler(params.backend, model, tokenizer, replace(settings, poll=poll))

    mine = {part.name for part in own_parts(ctx, parts)}
    finished = sum(part.num_prompts for part in planned if part.name in mine - pending)
    with running(ctx, model, load) as sampler:
        return stream_parts(ctx, own, sampler.sample, backend=params.backend, finished=finished)


class _Limits:
    """What becomes of prompts that leave no room for an answer."""

    def __init__(self, params: Params, model: ResolvedModel, context: int | None) -> None:
        self._params, self._model, self._context = params, model, context
        self._first: tuple[BenchItem, int, int] | None = None

    def too_long(self, item: BenchItem, turn: int, length: int) -> None:
        """Note the prompt, or raise DataError if such prompts are to fail the stage."""
        self._first = self._first or (item, turn, length)
        if self._params.on_prompt_too_long == "Fail":
            raise self._error(item, turn, length, "")

    def require_one_that_fits(self, planned: Sequence[PartDialogues]) -> None:
        """Raise DataError if no item has a prompt that fits; the model is not loaded then."""
        if self._first is not None and not any(part.requests for part in planned):
            count = sum(len(part.part.rows) for part in planned)
            raise self._error(*self._first, f"; none of the {count} prompts fits")

    def _error(self, item: BenchItem, turn: int, length: int, more: str) -> DataError:
        is_held_out = self._params.benchmark == "HeldOutReward"
        what = "held-out prompt" if is_held_out else "item"
        where = f" in turn {turn + 1}" if len(item.turns) > 1 else ""
        has_references = isinstance(self._params, MixtureParams)
        whole = "the chat template and references" if has_references else "the chat template"
        shorten = "Lower mixture.referenceTokens, use" if has_references else "Use"
        return DataError(
            f"{what} {item.item_id} has {length} tokens with {whole}{where}, but the context of "
            f"{self._model.identity} holds {self._context} for prompt and response together{more}",
            code="PromptTooLong",
            field="prompts.evaluation" if is_held_out else "evaluation.benchmarks",
            hint=f"{shorten} shorter prompts, raise sampling.maxModelLength, or use a model with a longer context.",
        )


def seed_model(params: Params) -> str:
    """Return the model in seeds: its name and revision, or the system whose model an upstream stage made."""
    if params.benchmark == "HeldOutReward":
        return HELD_OUT_SEED
    return f"{params.model.name}@{params.model.revision}" if params.model.name is not None else params.system
