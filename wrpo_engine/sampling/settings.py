"""Settings of a sampler, from the parameters of a stage that generates text."""

from __future__ import annotations

from typing import Any

from wrpo_engine.config import Runtime, SampleParams
from wrpo_engine.contract.evaluation import AnswerParams, MixtureParams
from wrpo_engine.hub.models import ResolvedModel, stop_token_ids
from wrpo_engine.sampling.sampler import SamplerSettings
from wrpo_engine.text.chat import end_of_turn_id


def length_for(needed: int, context: int | None) -> int:
    """Return the longest prompt and response that an engine is set up for, in tokens.

    `needed` are those of the longest prompt and its response, `context` the most that the model takes (None: no limit).
    `needed` is the same for every shard: engines reserve memory for all of it, and many models' own limits are far
    beyond one device's.
    """
    return needed if context is None else min(context, needed)


def settings_of(
    params: SampleParams | AnswerParams | MixtureParams,
    runtime: Runtime,
    model: ResolvedModel,
    tokenizer: Any,
    *,
    max_length: int,
) -> SamplerSettings:
    """Return the settings for a model; `max_length` are the tokens of a prompt and its response together, at most."""
    return SamplerSettings(
        temperature=params.temperature,
        top_p=params.top_p,
        choice=params,
        max_tokens=params.max_tokens,
        stop_token_ids=tuple(
            sorted({*stop_token_ids(tokenizer, model, end_of_turn_id(tokenizer)), *params.stop_token_ids})
        ),
        stop=params.stop,
        dtype=params.dtype,
        quantization=params.quantization,
        engine_args=engine_args_of(params, runtime),
        max_model_length=max_length,
        tensor_parallel_size=runtime.tensor_parallel_size,
        gpu_memory_utilization=runtime.gpu_memory_utilization,
    )


def engine_args_of(params: SampleParams | AnswerParams | MixtureParams, runtime: Runtime) -> dict[str, Any]:
    """Return vLLM's further arguments: those that change responses, and those of the runtime that change only speed."""
    own = params.engine_args if isinstance(params, SampleParams) else {}
    return {**own, **runtime.engine_args}
