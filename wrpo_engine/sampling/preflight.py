"""Checks of a model before it is loaded for sampling, the same for both backends."""

from __future__ import annotations

from typing import Any

from wrpo_engine.hub.models import ResolvedModel, check_vocabulary, known_config, tensor_facts, transformers_config
from wrpo_engine.loading.weights import SAMPLE, check_weights
from wrpo_engine.sampling.sampler import Backend
from wrpo_engine.text.chat import end_of_turn_id, prompt_token_ids


def check_source(model: ResolvedModel, tokenizer: Any, backend: Backend, system_prompt: str | None) -> None:
    """Raise ConfigError if the model's files are damaged or do not hold what its config.json describes.

    vLLM has models that Transformers has not; of these only the files themselves are checked here.
    """
    facts = tensor_facts(model)
    check_vocabulary(model, tokenizer, [*prompt_token_ids(tokenizer, "?", system_prompt), end_of_turn_id(tokenizer)])
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = known_config(model) if backend == "vLLM" else transformers_config(model)
    if config is None or (backend == "vLLM" and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
        return
    check_weights(model.directory, facts, config, AutoModelForCausalLM, SAMPLE)
