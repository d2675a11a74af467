"""Checks of a model before it is loaded for sampling, the same for both backends."""

from __future__ import annotations

from typing import Any

from wrpo_engine.hub.models import ResolvedModel, check_vocabulary, known_config, tensor_facts, transformers_config
from wrpo_engine.loading.files import INDEX_FILE, ModelDirectory, shown
from wrpo_engine.loading.weights import SAMPLE, check_weights
from wrpo_engine.sampling.sampler import Backend
from wrpo_engine.text.chat import end_of_turn_id, prompt_token_ids


def source_field(source: str) -> str:
    """Return the field of the experiment's spec that describes a model, by its name in `SampleParams.source`."""
    return "target" if source == "target" else f"sources[{source}]"


def check_source(model: ResolvedModel, tokenizer: Any, backend: Backend, system_prompt: str | None) -> None:
    """Raise ConfigError if the model's files are damaged or do not hold what its config.json describes.

    vLLM has models that Transformers has not; of these only the files themselves are checked here.
    """
    if backend == "vLLM":
        check_weight_files(model.directory)
    facts = tensor_facts(model)
    check_vocabulary(model, tokenizer, [*prompt_token_ids(tokenizer, "?", system_prompt), end_of_turn_id(tokenizer)])
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = known_config(model) if backend == "vLLM" else transformers_config(model)
    if config is None or (backend == "vLLM" and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
        return
    check_weights(model.directory, facts, config, AutoModelForCausalLM, SAMPLE)


def check_weight_files(directory: ModelDirectory) -> None:
    """Refuse weights that vLLM would read in addition to the model's own, and those in Mistral's own format alone.

    vLLM reads the files of the index or, without one, every *.safetensors.
    """
    own = set(directory.weight_files())
    found = {path.name for path in directory.path.glob("*.safetensors")}
    if not own:
        raise directory.invalid(
            f"it holds its weights only as {shown(sorted(found))}, which is not Transformers' format",
            "Use a model or a revision with model.safetensors or model-*.safetensors.",
        )
    if not directory.has(INDEX_FILE) and (others := sorted(found - own)):
        raise directory.invalid(
            f"vLLM would read {shown(others)} in addition to {shown(sorted(own))}",
            f"Remove {shown(others)} from the directory, or set sampling.backend: Transformers.",
        )
