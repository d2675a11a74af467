"""Preflight checks of a training run, before the first step and on one rank."""

from __future__ import annotations

from typing import Any

from wrpo_engine.config import OptimizerParams, SftParams, TrainParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.hub.models import (
    ResolvedModel,
    check_vocabulary,
    context_length,
    generation_stops,
    tensor_facts,
    transformers_config,
)
from wrpo_engine.loading.weights import TRAIN, check_weights, is_quantised
from wrpo_engine.stage import StageContext
from wrpo_engine.text.chat import end_of_turn_id, prompt_token_ids
from wrpo_engine.training.export.export import rehearse_export, trained_model


def check_start(ctx: StageContext, params: SftParams | TrainParams, base: ResolvedModel, tokenizer: Any) -> None:
    """Check the model, the lengths and everything that the export needs, without loading the model's weights.

    `tokenizer` is None if rows are token ids and the model directory has no tokenizer. Raise ConfigError or
    StorageError.
    """
    check_trainable(base, tokenizer)
    if not (isinstance(params, TrainParams) and params.tokenized_triples is not None):
        length_bound(params, base)
    generation_stops(base)
    rehearse_export(ctx.output, trained_model(base, params, tokenizer, weights={}), base)


def check_trainable(base: ResolvedModel, tokenizer: Any) -> None:
    """Raise ConfigError if the model cannot be trained, or its files lack what training needs."""
    config = transformers_config(base)
    if is_quantised(config.to_dict()):
        raise base.directory.invalid(
            "its weights are quantised, and quantised weights cannot be trained",
            "Use the model before quantisation. The quantised model can still be a source (sampling.backend: vLLM).",
        )
    facts = tensor_facts(base)
    if tokenizer is not None:
        used = [*prompt_token_ids(tokenizer, "?"), end_of_turn_id(tokenizer)] if tokenizer.chat_template else []
        check_vocabulary(base, tokenizer, used)
    from transformers import AutoModelForCausalLM

    check_weights(base.directory, facts, config, AutoModelForCausalLM, TRAIN)


def length_bound(params: OptimizerParams, base: ResolvedModel) -> int:
    """Return the maximum tokens of a row: maxLength, or the model's context if that is shorter than the default.

    ConfigError if maxLength is not the default and exceeds the context.
    """
    context = context_length(base)
    if context is None or params.max_length <= context:
        return params.max_length
    if params.max_length != type(params).model_fields["max_length"].default:
        raise ConfigError(
            "sft.maxLength" if isinstance(params, SftParams) else "training.maxLength",
            params.max_length,
            f"the context of {base.identity} holds {context} tokens",
            f"Set it to at most {context}, or use a model with a longer context.",
            code="ContextTooShort",
        )
    return context
