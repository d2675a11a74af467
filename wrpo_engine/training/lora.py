"""Low-rank adapters: put into a model, taken out for the reference, merged for export.

Only the adapters are trained, checkpointed and kept by the optimizer; the reference is the same model without them, so
none is ever loaded beside it. Adapters are held by name, `<module>.lora_A.default.weight` [rank, in] and
`<module>.lora_B.default.weight` [out, rank]; the module's weight becomes W + alpha / rank * B A.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wrpo_engine.config import LoraParams
from wrpo_engine.errors import ConfigError

_NAME = "default"
_A, _B = f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def add_adapters(causal_lm: Any, lora: LoraParams, *, seed: int) -> None:
    """Freeze the model and put adapters beside its linear layers; the same ones on every rank and attempt."""
    from peft import inject_adapter_in_model

    if _head_name(causal_lm) in lora.target_modules:
        raise _refused(lora, "the output head cannot have an adapter: its log-probabilities are computed in chunks")
    config = _peft_config(lora, list(lora.target_modules) or "all-linear")
    torch.manual_seed(seed)
    try:
        inject_adapter_in_model(config, causal_lm, adapter_name=_NAME)
    except ValueError as error:
        raise _refused(lora, str(error).splitlines()[0]) from error
    # Hidden states need a gradient from the first layer on, or checkpointed layers would have nothing to recompute for.
    causal_lm.enable_input_require_grads()


def _peft_config(lora: LoraParams, modules: list[str] | str, **settings: Any) -> Any:
    from peft import LoraConfig

    # PEFT declares alpha as int and computes with any number.
    alpha: Any = lora.alpha
    return LoraConfig(
        r=lora.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=modules, task_type="CAUSAL_LM", **settings
    )


def _head_name(causal_lm: Any) -> str:
    head = causal_lm.get_output_embeddings()
    return next((name for name, module in causal_lm.named_modules() if module is head), "").rpartition(".")[2]


def _refused(lora: LoraParams, why: str) -> ConfigError:
    return ConfigError(
        "training.lora.targetModules",
        list(lora.target_modules),
        why,
        "Name linear layers of the model, for example q_proj and v_proj, or leave it out for all of them.",
    )


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Compute with the base weights alone."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapters(causal_lm: Any, adapters: Mapping[str, Tensor], lora: LoraParams) -> dict[str, Tensor]:
    """Return a plain model's parameters with the adapters added: summed in fp32, rounded once to its dtype."""
    weights = {name: parameter.detach() for name, parameter in causal_lm.named_parameters()}
    for name, a_RI in adapters.items():
        if not name.endswith(_A):
            continue
        module = name.removesuffix(_A)
        delta_OI = (adapters[module + _B].float() @ a_RI.float()) * (lora.alpha / lora.rank)
        weight = weights[f"{module}.weight"]
        # GPT-2's Conv1D keeps its weight as [in, out].
        is_transposed = not isinstance(causal_lm.get_submodule(module), nn.Linear)
        delta = delta_OI.T if is_transposed else delta_OI
        weights[f"{module}.weight"] = (weight.float() + delta).to(weight.dtype)
    return weights


def save_adapter(directory: Path, adapters: Mapping[str, Tensor], lora: LoraParams, *, base: str) -> None:
    """Write the adapter as PEFT reads it."""
    directory.mkdir(parents=True, exist_ok=True)
    renamed = {
        "base_model.model." + name.replace(f".{_NAME}.", "."): tensor.contiguous() for name, tensor in adapters.items()
    }
    save_file(renamed, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    modules = sorted({name.removesuffix(_A).rpartition(".")[2] for name in adapters if name.endswith(_A)})
    config = _peft_config(lora, modules, base_model_name_or_path=base, inference_mode=True)
    config.save_pretrained(str(directory))
    path = directory / ADAPTER_CONFIG
    # PEFT keeps names in a set: their order would differ from run to run.
    settings = json.loads(path.read_text()) | {"target_modules": modules}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
