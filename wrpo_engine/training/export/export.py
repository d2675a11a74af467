"""Export of the trained model as a plain Hugging Face directory, published file by file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wrpo_engine.artifacts import ArtifactWriter
from wrpo_engine.artifacts.manifest import sha256_of
from wrpo_engine.config import LoraParams, OptimizerParams
from wrpo_engine.contract.storage import StorageField
from wrpo_engine.errors import ConfigError, StorageError, first_line
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.loading.files import CONFIG_FILE, GENERATION_FILE
from wrpo_engine.loading.guard import loading
from wrpo_engine.loading.weights import quiet_loading
from wrpo_engine.training.backends.base import Backend, Item, TensorKind
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.models.lora import add_adapters, merge_adapters, save_adapter
from wrpo_engine.training.models.model import load_causal_lm

MODEL_DIRECTORY = "model"
ADAPTER_DIRECTORY = "adapter"
_GIB = 2**30
_BATCH = 2**28
"""Elements of fp32 weights on the host before they are rounded."""
_MODE = 0o644
"""Permissions for other pods, which read the artifact as other users."""


def gather_weights(
    backend: Backend, group: Group, precision: Literal["float32", "bfloat16"]
) -> dict[str, Tensor] | None:
    """Return all trainable weights on rank 0, rounded once to the given precision, and None on other ranks.

    All ranks call this together.
    """
    weights: dict[str, Tensor] = {}
    for batch in _batches(backend, [Item(name, TensorKind.WEIGHT) for name in backend.parameter_names()]):
        own = {item: backend.host_tensor(item) for item in batch} if group.is_main else {}
        backend.gather([batch, *([] for _ in range(group.world_size - 1))], own)
        weights |= {item.name: tensor.to(getattr(torch, precision)) for item, tensor in own.items()}
    return weights if group.is_main else None


def _batches(backend: Backend, items: Sequence[Item]) -> Iterator[list[Item]]:
    """Divide tensors so that the fp32 copies of a batch are small compared with the weights."""
    batch: list[Item] = []
    elements = 0
    for item in items:
        batch.append(item)
        elements += backend.host_tensor(item).numel()
        if elements >= _BATCH:
            yield batch
            batch, elements = [], 0
    if batch:
        yield batch


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The content of an export."""

    source: Path
    """The model that training started from: config, generation config and, for adapters, the base weights."""
    base_name: str
    """The base model's name in the adapter's configuration."""
    weights: Mapping[str, Tensor]
    """Trained parameters by their Hugging Face names; with `lora` the adapters, in fp32."""
    precision: Literal["float32", "bfloat16"]
    lora: LoraParams | None
    tokenizer: Any
    """None if a run on token ids has no tokenizer."""
    trust_remote_code: bool


def trained_model(
    base: ResolvedModel, params: OptimizerParams, tokenizer: Any, weights: Mapping[str, Tensor]
) -> TrainedModel:
    """Return the content of a run's export; `weights` is empty before training."""
    return TrainedModel(
        source=base.path,
        base_name=str(base.details().get("name") or base.path),
        weights=weights,
        precision=params.precision,
        lora=params.lora,
        tokenizer=tokenizer,
        trust_remote_code=base.trust_remote_code,
    )


def export_model(output: ArtifactWriter, trained: TrainedModel, card: Callable[[Mapping[str, str]], str]) -> list[str]:
    """Publish config, safetensors, tokenizer with chat template, generation config and card; return the file names.

    The model is rebuilt from its config on the meta device and filled with the weights. So nothing that training
    attached to the live model (hooks, partitions, the chunked head) can reach the files. With adapters the model is the
    merged one, and the adapter is in a second directory. `card` receives the sha256 of every file of weights.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    scratch = output.directory / f".tmp-{MODEL_DIRECTORY}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        model = scratch / MODEL_DIRECTORY
        weights = dict(trained.weights)
        if trained.lora is not None:
            save_adapter(scratch / ADAPTER_DIRECTORY, weights, trained.lora, base=trained.base_name)
            weights = _merged(_base(trained), weights, trained.lora)
        _save_model(model, trained, weights)
        digests = {name: sha256_of(scratch / name) for name in _names(scratch) if name.endswith(".safetensors")}
        (model / "README.md").write_text(card(digests))
        names = _names(scratch)
        for name in names:
            # Files of an attempt that was killed during its export must not mix with this one's weights.
            output.publish(name, partial(_move, scratch / name), replace=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return names


def _buffers(model: Any) -> dict[str, Tensor]:
    """Return the tensors of a model's files that are not parameters, such as DeepSeek-V3's bias of expert scores.

    Training does not change them, so they are taken from the base model.
    """
    state = model.state_dict()
    return {name: state[name] for name in sorted(dict(model.named_buffers()).keys() & state.keys())}


def _merged(base: Any, adapters: Mapping[str, Tensor], lora: LoraParams) -> dict[str, Tensor]:
    """Return parameters and buffers of the merged model, so that the base is loaded once and can be freed."""
    return {**merge_adapters(base, adapters, lora), **_buffers(base)}


def _base(trained: TrainedModel) -> Any:
    return load_causal_lm(
        trained.source,
        precision=trained.precision,
        gradient_checkpointing=False,
        trust_remote_code=trained.trust_remote_code,
    )


def rehearse_export(output: ArtifactWriter, trained: TrainedModel, base: ResolvedModel) -> None:
    """Rehearse the export with one tensor of the model before training, so that every trained model can be saved.

    Raise ConfigError if the model cannot be written, and StorageError if the output has too little space.
    """

    def refuse(error: BaseException) -> ConfigError:
        return base.directory.invalid(
            f"the model could not be saved after training: {first_line(error)}",
            f"Correct {CONFIG_FILE}, {GENERATION_FILE} or the tokenizer's files of the model.",
            code="ExportImpossible",
        )

    scratch = output.directory / f".tmp-rehearsal-{MODEL_DIRECTORY}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with loading(refuse), quiet_loading():
            model = _empty_model(trained)
            _write_model(scratch, trained, model, _smallest(model))
            if trained.lora is not None:
                _rehearse_merge(scratch / ADAPTER_DIRECTORY, trained, trained.lora)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _require_space(output, sum(parameter.numel() for parameter in model.parameters()), trained)


def _smallest(model: Any) -> dict[str, Tensor]:
    name, parameter = min(model.named_parameters(), key=lambda named: (named[1].numel(), named[0]))
    return {name: torch.zeros(parameter.shape, dtype=parameter.dtype)}


def _rehearse_merge(directory: Path, trained: TrainedModel, lora: LoraParams) -> None:
    """Merge adapters and model on the meta device, and write one adapter with zeros."""
    adapted = _empty_model(trained)
    with torch.device("meta"):
        add_adapters(adapted, lora, seed=0)
    adapters = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    merge_adapters(_empty_model(trained), adapters, lora)
    module = min(adapters).partition(".lora_")[0]
    own = {name: torch.zeros(tensor.shape) for name, tensor in adapters.items() if name.startswith(f"{module}.lora_")}
    save_adapter(directory, own, lora, base=trained.base_name)


def _require_space(output: ArtifactWriter, parameters: int, trained: TrainedModel) -> None:
    needed = parameters * getattr(torch, trained.precision).itemsize
    free = shutil.disk_usage(output.directory).free
    if free < needed:
        raise StorageError(
            f"the trained model takes {needed / _GIB:.2f} GiB, but {output.directory} has {free / _GIB:.2f} GiB free",
            code="StorageFull",
            field=StorageField.STORAGE,
            hint="Enlarge the volume or remove artifacts that are not needed, then retry.",
        )


def _empty_model(trained: TrainedModel) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    trust_remote_code = trained.trust_remote_code
    config = AutoConfig.from_pretrained(str(trained.source), trust_remote_code=trust_remote_code)
    dtype = getattr(torch, trained.precision)
    config.dtype = dtype
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)


def _save_model(directory: Path, trained: TrainedModel, weights: dict[str, Tensor]) -> None:
    model = _empty_model(trained)
    if _buffers(model).keys() - weights.keys():
        weights = {**weights, **_buffers(_base(trained))}
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if unexpected or left:
        raise RuntimeError(f"the exported model does not match its config: missing {missing}, unexpected {unexpected}")
    _write_model(directory, trained, model, weights)


def _write_model(directory: Path, trained: TrainedModel, model: Any, weights: dict[str, Tensor]) -> None:
    """Write config, weights, generation config and tokenizer."""
    from transformers import GenerationConfig

    own = trained.source / GENERATION_FILE
    if own.is_file():
        # The file is copied, because Transformers refuses to write some files that it reads.
        model.generation_config = GenerationConfig()
    # Saving refuses greedy defaults with sampling parameters; do_sample keeps the parameters.
    elif model.generation_config.temperature is not None or model.generation_config.top_p is not None:
        model.generation_config.do_sample = True
    model.save_pretrained(directory, state_dict=weights)
    if own.is_file():
        shutil.copyfile(own, directory / GENERATION_FILE)
    if trained.tokenizer is not None:
        trained.tokenizer.save_pretrained(str(directory))


def _names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _move(source: Path, path: Path) -> None:
    source.replace(path)
    path.chmod(_MODE)
