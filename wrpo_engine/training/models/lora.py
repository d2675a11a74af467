"""Low-rank adapters: insertion, deactivation for the reference, merging and export.

Only the adapters are trained, checkpointed and part of the optimizer. The reference is the same model without them, so
no second model is loaded. The module's weight becomes W + alpha / rank * B A, where A and B have these names:

    of linear layers    `<module>.lora_A.default.weight` [rank, in],  `<module>.lora_B.default.weight` [out, rank]
    of embeddings       `<module>.lora_embedding_A.default` [rank, vocabulary],  `<module>.lora_embedding_B.default`
                        [width, rank], transposed like the embedding's weight

`lora_targets` selects the layers.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wrpo_engine.config import LoraParams
from wrpo_engine.training.models.lora_targets import NAME, lora_config, refused, target_names

_LINEAR = (f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight")
_EMBEDDING = (f".lora_embedding_A.{NAME}", f".lora_embedding_B.{NAME}")
_SAVED = re.compile(rf"\.{NAME}(?=(\.weight)?$)")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def add_adapters(causal_lm: Any, lora: LoraParams, *, seed: int) -> None:
    """Freeze the model and add adapters to its layers, equal on every rank and attempt.

    Raise ConfigError for target modules that cannot have an adapter.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.lora import Embedding, Linear

    targets = target_names(causal_lm, lora)
    torch.manual_seed(seed)
    try:
        inject_adapter_in_model(lora_config(lora, targets), causal_lm, adapter_name=NAME)
    except ValueError as error:
        raise refused(lora, str(error).splitlines()[0]) from error
    kinds = {name: type(module) for name, module in _adapted(causal_lm).items()}
    if kinds.keys() != set(targets) or not set(kinds.values()) <= {Linear, Embedding}:
        raise refused(lora, f"PEFT adds adapters to other modules than the selected ones: {sorted(kinds)[:5]}")
    # Hidden states need a gradient from the first layer on, otherwise checkpointed layers would not be recomputed.
    causal_lm.enable_input_require_grads()


def _adapted(model: nn.Module) -> dict[str, Any]:
    """Return the modules with an adapter by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Disable the adapters within the block, which then computes with the base weights alone."""
    layers = list(_adapted(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapters(causal_lm: Any, adapters: Mapping[str, Tensor], lora: LoraParams) -> dict[str, Tensor]:
    """Return a plain model's parameters with the adapters added: summed in fp32, rounded once to its dtype.

    ValueError if a tensor of the adapters belongs to no module, so that no trained tensor is left out.
    """
    weights = {name: parameter.detach() for name, parameter in causal_lm.named_parameters()}
    for module, (a_RI, b_OR) in _by_module(adapters).items():
        delta_OI = (b_OR.float() @ a_RI.float()) * (lora.alpha / lora.rank)
        weight = weights[f"{module}.weight"]
        # Embeddings and GPT-2's Conv1D store their weight as [in, out].
        is_transposed = not isinstance(causal_lm.get_submodule(module), nn.Linear)
        delta = delta_OI.T if is_transposed else delta_OI
        weights[f"{module}.weight"] = (weight.float() + delta).to(weight.dtype)
    return weights


def _by_module(adapters: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the module's name -> (A [rank, in], B [out, rank]); ValueError if a tensor belongs to none."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    used: set[str] = set()
    for first, second in (_LINEAR, _EMBEDDING):
        for name in adapters:
            module = name.removesuffix(first)
            if module != name and module + second in adapters:
                found[module] = (adapters[name], adapters[module + second])
                used |= {name, module + second}
    if left := sorted(adapters.keys() - used):
        raise ValueError(f"adapters that belong to no linear layer or embedding: {', '.join(left)}")
    return found


def save_adapter(directory: Path, adapters: Mapping[str, Tensor], lora: LoraParams, *, base: str) -> None:
    """Write the adapter's weights and configuration in PEFT's format; `base` is the base model's name in it."""
    directory.mkdir(parents=True, exist_ok=True)
    # Without the adapter's name, which is the last part or the one before `.weight`.
    renamed = {f"base_model.model.{_SAVED.sub('', name)}": tensor.contiguous() for name, tensor in adapters.items()}
    save_file(renamed, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    modules = _short_names(sorted(_by_module(adapters)), lora)
    config = lora_config(lora, modules, base_model_name_or_path=base, inference_mode=True)
    config.save_pretrained(str(directory))
    path = directory / ADAPTER_CONFIG
    # PEFT stores names in a set, whose order differs from run to run.
    settings = json.loads(path.read_text()) | {"target_modules": modules}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _short_names(modules: Sequence[str], lora: LoraParams) -> list[str]:
    """Return the module names of the adapter's configuration: the user's, otherwise each kind of layer once."""
    if lora.target_modules:
        return sorted(set(lora.target_modules))
    last = {module.rpartition(".")[2] for module in modules}
    # A number would also match the name of a whole layer.
    return list(modules) if any(name.isdigit() for name in last) else sorted(last)
