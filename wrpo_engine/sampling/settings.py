"""Settings of a sampler, from the parameters of a stage that generates text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wrpo_engine.config import Runtime, SampleParams
from wrpo_engine.contract.evaluation import AnswerParams, MixtureParams
from wrpo_engine.hub.models import ResolvedModel, stop_token_ids
from wrpo_engine.sampling.sampler import SamplerSettings
from wrpo_engine.text.chat import end_of_turn_id


def settings_of(
    params: SampleParams | AnswerParams | MixtureParams,
    runtime: Runtime,
    model: ResolvedModel,
    tokenizer: Any,
    *,
    engine_args: Mapping[str, Any],
    needed: int,
    context: int | None,
) -> SamplerSettings:
    """Return the settings for a model.

    `needed` are the tokens of the longest prompt and its response together, `context` the most that the model takes
    (None: no limit). `needed` is the same for every shard: engines reserve memory for all of it, and many models' own
    limits are far beyond one device's.
    """
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
        engine_args=engine_args,
        max_model_length=needed if context is None else min(context, needed),
        tensor_parallel_size=runtime.tensor_parallel_size,
        gpu_memory_utilization=runtime.gpu_memory_utilization,
    )
