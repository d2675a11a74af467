"""Checks of a model before it is downloaded or gets an accelerator: those of the stages that use it, on its outline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from wrpo_engine.contract.data import ModelUse
from wrpo_engine.contract.model_facts import FactsError, ModelFacts, facts_of, with_commit
from wrpo_engine.errors import ConfigError, first_line
from wrpo_engine.hub.models import (
    ResolvedModel,
    check_directory,
    check_vocabulary,
    generation_stops,
    tensor_facts,
    tokenizer_of,
)
from wrpo_engine.inspecting.code import check_code, needs_code
from wrpo_engine.loading.files import CONFIG_FILE, TensorFact, is_quantised
from wrpo_engine.loading.guard import loading

log = logging.getLogger("wrpo_engine")


def model_field(uses: Iterable[ModelUse]) -> str:
    """Return the field of the spec that names a model: that of its first use."""
    return next((f"{use.field}.model" for use in uses), "model")


def inspect_model(model: ResolvedModel, uses: Sequence[ModelUse], *, needs_facts: bool) -> ModelFacts | None:
    """Check a model for all uses and return the facts about it. Reads no weights.

    ConfigError if its files are damaged, if a use cannot load it, or, with `needs_facts`, if its config does not say
    how large it is.
    """
    check_directory(model.path, model.identity, model.field, model.location)
    config = model.directory.read_object(CONFIG_FILE)
    tensors = tensor_facts(model)
    stored = model.directory.weight_bytes()
    for use in uses:
        check_code(_used(model, use), config, use)
    try:
        facts = _facts(model, config, tensors, stored)
    except ConfigError as error:
        if needs_facts:
            raise
        log.warning("%s", error)
        facts = None
    check_uses(model, uses)
    return facts


def check_uses(model: ResolvedModel, uses: Iterable[ModelUse]) -> None:
    """Raise ConfigError if one of the uses cannot load a model whose files are intact."""
    config = model.directory.read_object(CONFIG_FILE)
    for use in uses:
        used = _used(model, use)
        check_code(used, config, use)
        _CHECKS[use.purpose](used, use)


def _used(model: ResolvedModel, use: ModelUse) -> ResolvedModel:
    return replace(
        model,
        trust_remote_code=use.trust_remote_code,
        chat_template=use.chat_template,
        field=f"{use.field}.model",
    )


def _facts(
    model: ResolvedModel, config: Mapping[str, Any], tensors: Mapping[str, TensorFact], stored_bytes: int
) -> ModelFacts:
    def refuse(error: BaseException) -> ConfigError:
        rule = str(error) if isinstance(error, FactsError) else f"its size cannot be read: {first_line(error)}"
        hint = "Correct config.json, or set the accelerators of the stages that use the model."
        return model.directory.invalid(rule, hint, code="ModelSizeUnknown")

    with loading(refuse):
        facts = facts_of(
            config,
            weight_bytes=stored_bytes,
            # Quantised weights hold several parameters in one value.
            stored_parameters=None if is_quantised(config) else sum(prod(fact.shape) for fact in tensors.values()),
        )
    return with_commit(facts.model_copy(update={"needs_code": needs_code(config)}), model.revision)


def _check_sample(model: ResolvedModel, use: ModelUse) -> None:
    from wrpo_engine.sampling.preflight import check_source

    tokenizer = tokenizer_of(model, field=use.field)
    generation_stops(model)
    check_source(model, tokenizer, use.backend, use.system_prompt)


def _check_train(model: ResolvedModel, use: ModelUse) -> None:
    from wrpo_engine.training.preflight import check_trainable

    tokenizer = tokenizer_of(model, field=use.field)
    generation_stops(model)
    check_trainable(model, tokenizer)


def _check_score(model: ResolvedModel, use: ModelUse) -> None:
    from wrpo_engine.scoring.loading import check_network, read_config

    tokenizer = tokenizer_of(model, field=use.field, needs_template=False)
    check_vocabulary(model, tokenizer, tokenizer("?", verbose=False)["input_ids"])
    check_network(model, read_config(model))


_CHECKS: Mapping[str, Callable[[ResolvedModel, ModelUse], None]] = {
    "sample": _check_sample,
    "train": _check_train,
    "score": _check_score,
}
