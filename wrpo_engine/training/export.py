"""The trained model as a plain Hugging Face directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wrpo_engine.training.backend import Backend, TensorKind
from wrpo_engine.training.collectives import Group

MODEL_DIRECTORY = "model"


def gather_weights(
    backend: Backend, group: Group, precision: Literal["float32", "bfloat16"]
) -> dict[str, Tensor] | None:
    """Return all trainable weights on rank 0, rounded once to the training precision; None elsewhere."""
    weights: dict[str, Tensor] = {}
    for name in backend.parameter_names():
        full = backend.full_tensor(name, TensorKind.WEIGHT)
        if group.is_main:
            weights[name] = full.to(getattr(torch, precision))
    return weights if group.is_main else None


def export_model(
    directory: Path, *, source: Path, weights: dict[str, Tensor], tokenizer: Any, card: str, trust_remote_code: bool
) -> list[str]:
    """Write config, safetensors, tokenizer with chat template, generation config and card; return the file names.

    The model is made anew from its config on the meta device and given the weights, so nothing that training hung on
    the live model (hooks, partitions, the chunked head) can reach the files. It appears at once, when it is whole.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    dtype = next(iter(weights.values())).dtype
    config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if unexpected or left:
        raise RuntimeError(f"the exported model does not match its config: missing {missing}, unexpected {unexpected}")
    if (source / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(source))
    # Greedy defaults beside sampling parameters are refused on saving; the parameters are kept by saying so.
    if model.generation_config.temperature is not None or model.generation_config.top_p is not None:
        model.generation_config.do_sample = True
    temporary = directory.with_name(f".tmp-{directory.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, state_dict=weights)
    tokenizer.save_pretrained(str(temporary))
    (temporary / "README.md").write_text(card)
    shutil.rmtree(directory, ignore_errors=True)
    temporary.replace(directory)
    return sorted(str(path.relative_to(directory.parent)) for path in directory.rglob("*") if path.is_file())
