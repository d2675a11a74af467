"""One model's answers to the held-out prompts, as a table. Its memory is freed before this returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from wrpo_engine.chat import end_of_turn_id, prompt_token_ids
from wrpo_engine.config import EvaluateParams
from wrpo_engine.errors import DataError
from wrpo_engine.models import ResolvedModel, context_length, stop_token_ids, tokenizer_of
from wrpo_engine.sampling.sampler import SampleRequest, SamplerSettings, make_sampler, prompt_seed

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
"""Called with the number of prompts answered so far; may raise to stop."""


@dataclass(frozen=True, kw_only=True)
class AnswerJob:
    """What one model has to answer, and how."""

    label: str
    model: ResolvedModel
    prompts: Sequence[tuple[str, str]]
    """(prompt id, prompt)."""
    params: EvaluateParams
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None


def answer(job: AnswerJob, on_answer: OnAnswer, poll: Callable[[], None] | None = None) -> pl.DataFrame:
    """Answer every prompt; rows are in prompt and sample order. `poll` is called often, and may raise to stop."""
    params, model = job.params, job.model
    tokenizer = tokenizer_of(model, field=f"evaluation model {job.label}")
    requests = _requests(job, tokenizer)
    # The longest prompt and answer bound what the engine must hold, which is far less than most models' limits.
    needed = max(len(request.prompt_token_ids) for request in requests) + params.max_tokens
    context = context_length(model)
    settings = SamplerSettings(
        temperature=params.temperature,
        top_p=params.top_p,
        max_tokens=params.max_tokens,
        stop_token_ids=tuple(stop_token_ids(tokenizer, model, end_of_turn_id(tokenizer))),
        dtype=params.dtype,
        max_model_length=needed if context is None else min(context, needed),
        tensor_parallel_size=job.tensor_parallel_size,
        gpu_memory_utilization=job.gpu_memory_utilization,
        poll=poll,
    )
    sampler = make_sampler(params.backend, model, tokenizer, settings)
    try:
        answered = {}
        for sampled in sampler.sample(requests):
            answered[sampled.key] = sampled.samples
            on_answer(len(answered))
    finally:
        sampler.close()
    rows = [
        (job.label, prompt_id, prompt, index, sample.text, sample.num_tokens, sample.finish_reason.value)
        for prompt_id, prompt in job.prompts
        for index, sample in enumerate(answered[prompt_id])
    ]
    return pl.DataFrame(rows, schema=ANSWERS, orient="row")


def _requests(job: AnswerJob, tokenizer: object) -> list[SampleRequest]:
    params = job.params
    context = context_length(job.model)
    requests = []
    for prompt_id, prompt in job.prompts:
        ids = prompt_token_ids(tokenizer, prompt, params.system_prompt)
        if context is not None and len(ids) >= context:
            raise DataError(
                f"held-out prompt {prompt_id} has {len(ids)} tokens with the chat template, but the context of "
                f"{job.model.identity} holds {context} for prompt and answer together",
                code="PromptTooLong",
                field="prompts.evaluation",
                hint="Remove this prompt from the data set, or use a model with a longer context.",
            )
        # All models share a prompt's seed: they differ by their weights alone.
        seed = prompt_seed(params.seed, "evaluation", prompt_id)
        requests.append(
            SampleRequest(key=prompt_id, prompt_token_ids=ids, num_samples=params.samples_per_prompt, seed=seed)
        )
    return requests
