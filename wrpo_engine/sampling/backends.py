"""The samplers by the names of their libraries, of which only the chosen one is imported."""

from __future__ import annotations

from typing import Any

from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.sampling.sampler import Backend, Sampler, SamplerSettings


def make_sampler(backend: Backend, model: ResolvedModel, tokenizer: Any, settings: SamplerSettings) -> Sampler:
    """Load a model for sampling. `tokenizer` is used to turn ids into text only."""
    match backend:
        case "vLLM":
            from wrpo_engine.sampling.vllm_sampler import VllmSampler

            return VllmSampler(model, tokenizer, settings)
        case "Transformers":
            from wrpo_engine.sampling.transformers_sampler import TransformersSampler

            return TransformersSampler(model, tokenizer, settings)
