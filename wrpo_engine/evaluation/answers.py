"""One model's responses to the held-out prompts, as a table. The model's memory is freed afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from wrpo_engine.config import EvaluateParams
from wrpo_engine.errors import DataError
from wrpo_engine.hub.models import ResolvedModel, context_length, stop_token_ids, tokenizer_of
from wrpo_engine.process.hang_watch import HangWatch
from wrpo_engine.sampling.preflight import check_source
from wrpo_engine.sampling.sampler import (
    FinishReason,
    Sample,
    SampleRequest,
    SamplerSettings,
    make_sampler,
    prompt_seed,
)
from wrpo_engine.text.chat import end_of_turn_id, prompt_token_ids

ANSWERS = {
    "label": pl.String,
    "prompt_id": pl.String,
    "prompt": pl.String,
    "sample_index": pl.Int64,
    "text": pl.String,
    "num_tokens": pl.Int64,
    "finish_reason": pl.String,
}
SCORED_ANSWERS = {**ANSWERS, "score": pl.Float64}
"""evaluate: answers.parquet."""

OnAnswer = Callable[[int], None]
"""Called with the number of prompts finished so far; may raise to stop."""


@dataclass(frozen=True, kw_only=True)
class AnswerJob:
    """The prompts for one model and the sampling parameters."""

    label: str
    model: ResolvedModel
    prompts: Sequence[tuple[str, str]]
    """(prompt id, prompt)."""
    params: EvaluateParams
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """vLLM: further arguments by their Python names."""
    context_limit: int | None = None
    """Maximum tokens of prompt and response together; None: the model's limit."""
    hang_timeout_s: float = 1200.0
    """Seconds without a decoding step after which the process ends."""

    @property
    def context(self) -> int | None:
        """Tokens of prompt and response together; None if nothing limits them."""
        limits = (context_length(self.model), self.context_limit)
        return min((limit for limit in limits if limit is not None), default=None)


def answer(job: AnswerJob, on_answer: OnAnswer, poll: Callable[[], None] | None = None) -> pl.DataFrame:
    """Sample responses to every prompt; rows are in prompt and sample order. `poll` is called often, may raise to stop.

    A prompt that leaves no room for a response in the model's context has one row without text, with the finish reason
    `prompt_too_long`. DataError if no prompt fits; the model is not loaded then.
    """
    params, model = job.params, job.model
    tokenizer = tokenizer_of(model, field=f"evaluation model {job.label}")
    check_source(model, tokenizer, params.backend, params.system_prompt)
    requests = _requests(job, tokenizer)
    answered = _answers(job, tokenizer, requests, on_answer, poll)
    return pl.DataFrame(
        [row for prompt_id, prompt in job.prompts for row in _rows(job.label, prompt_id, prompt, answered)],
        schema=ANSWERS,
        orient="row",
    )


def _answers(
    job: AnswerJob,
    tokenizer: Any,
    requests: Sequence[SampleRequest],
    on_answer: OnAnswer,
    poll: Callable[[], None] | None,
) -> dict[str, tuple[Sample, ...]]:
    params, model, context = job.params, job.model, job.context
    watch = HangWatch(f"sampling from {job.label}", job.hang_timeout_s, os.environ)

    def beat() -> None:
        watch.beat()
        if poll is not None:
            poll()

    # The longest prompt and response bound what the engine must hold, which is far less than most models' limits.
    needed = max(len(request.prompt_token_ids) for request in requests) + params.max_tokens
    settings = SamplerSettings(
        temperature=params.temperature,
        top_p=params.top_p,
        choice=params,
        max_tokens=params.max_tokens,
        stop_token_ids=tuple(stop_token_ids(tokenizer, model, end_of_turn_id(tokenizer))),
        dtype=params.dtype,
        max_model_length=needed if context is None else min(context, needed),
        tensor_parallel_size=job.tensor_parallel_size,
        gpu_memory_utilization=job.gpu_memory_utilization,
        engine_args=job.engine_args,
        poll=beat,
    )
    sampler = make_sampler(params.backend, model, tokenizer, settings)
    answered = {}
    try:
        with watch:
            for sampled in sampler.sample(requests):
                answered[sampled.key] = sampled.samples
                on_answer(len(answered))
    finally:
        sampler.close()
    return answered


def _rows(
    label: str, prompt_id: str, prompt: str, answered: Mapping[str, Sequence[Sample]]
) -> list[tuple[str, str, str, int, str, int, str]]:
    if prompt_id not in answered:
        return [(label, prompt_id, prompt, 0, "", 0, FinishReason.PROMPT_TOO_LONG.value)]
    return [
        (label, prompt_id, prompt, index, sample.text, sample.num_tokens, sample.finish_reason.value)
        for index, sample in enumerate(answered[prompt_id])
    ]


def _requests(job: AnswerJob, tokenizer: object) -> list[SampleRequest]:
    """Return a request for each prompt that leaves room for a response; DataError if there is none."""
    params, context = job.params, job.context
    requests = []
    lengths = []
    for prompt_id, prompt in job.prompts:
        ids = prompt_token_ids(tokenizer, prompt, params.system_prompt)
        lengths.append(len(ids))
        if context is not None and len(ids) >= context:
            continue
        # All models share a prompt's seed: they differ by their weights alone.
        seed = prompt_seed(params.seed, "evaluation", prompt_id)
        requests.append(
            SampleRequest(key=prompt_id, prompt_token_ids=ids, num_samples=params.samples_per_prompt, seed=seed)
        )
    if not requests:
        raise DataError(
            f"held-out prompt {job.prompts[0][0]} has {lengths[0]} tokens with the chat template, but the context of "
            f"{job.model.identity} holds {context} for prompt and response together; "
            f"none of the {len(lengths)} prompts fits",
            code="PromptTooLong",
            field="prompts.evaluation",
            hint="Use shorter held-out prompts, raise sampling.maxModelLength, or use a model with a longer context.",
        )
    return requests


def common_prompts(answers: Mapping[str, pl.DataFrame]) -> tuple[dict[str, pl.DataFrame], list[str]]:
    """Return each model's responses to the prompts that all models responded to, and the other prompts' ids, sorted.

    DataError if there is no such prompt.
    """
    is_too_long = pl.col("finish_reason") == FinishReason.PROMPT_TOO_LONG.value
    skipped = sorted({key for rows in answers.values() for key in rows.filter(is_too_long)["prompt_id"]})
    common = {label: rows.filter(~pl.col("prompt_id").is_in(skipped)) for label, rows in answers.items()}
    if any(rows.is_empty() for rows in common.values()):
        raise DataError(
            f"each of the {len(skipped)} held-out prompts is too long for the context of one of the models "
            f"{', '.join(answers)}",
            code="PromptTooLong",
            field="prompts.evaluation",
            hint="Use shorter held-out prompts, or models with a longer context.",
        )
    return common, skipped
