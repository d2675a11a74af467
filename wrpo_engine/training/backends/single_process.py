"""Single-process backend in plain PyTorch, without DeepSpeed; the baseline of tests of the other backends."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from wrpo_engine.config import OptimizerParams
from wrpo_engine.training.backends.base import Backend, Item, ReadTensor, TensorKind
from wrpo_engine.training.backends.compact_adamw import CompactAdamW
from wrpo_engine.training.backends.gathering import Gatherer
from wrpo_engine.training.backends.states import ReplicatedState
from wrpo_engine.training.batch.collate import Batch
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.models.lora import adapters_off
from wrpo_engine.training.models.model import PREFIX, LogpModel

_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|_norm(\.|$)|(^|\.)norm(\.|$)")


def undecayed(model: nn.Module) -> set[str]:
    """Return the names of the parameters without weight decay: biases and norms, as in the Hugging Face trainer."""
    of_layer_norms = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    return of_layer_norms | {name for name, _ in model.named_parameters() if _UNDECAYED.search(name.lower())}


def make_adamw(model: nn.Module, params: OptimizerParams, *, decays: bool = True) -> torch.optim.Optimizer:
    """Return the optimizer of all backends; `set_learning_rate` sets its rate before every step.

    Without `decays` all parameters form one group, and the caller applies weight decay.
    """
    weight_decay = params.weight_decay if decays else 0.0
    exempt = undecayed(model) if weight_decay else set()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for name, parameter in trained if name not in exempt],
            "weight_decay": weight_decay,
        },
        {"params": [parameter for name, parameter in trained if name in exempt], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    lr, betas, eps = params.learning_rate, (params.adam_beta1, params.adam_beta2), params.adam_epsilon
    if params.optimizer_moments == "float32":
        return torch.optim.AdamW(filled, lr=lr, betas=betas, eps=eps, fused=True)
    return CompactAdamW(filled, moments=params.optimizer_moments, lr=lr, betas=betas, eps=eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all groups of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


class SingleProcessBackend(Backend):
    """One rank, parameters in the model's own dtype."""

    def __init__(self, model: LogpModel, params: OptimizerParams, frozen: LogpModel | None = None) -> None:
        self._model = model
        self._frozen = frozen
        self._max_grad_norm = params.max_grad_norm
        self._parameters = {
            name.removeprefix(PREFIX): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._optimizer = make_adamw(model, params)
        self._state = ReplicatedState(self._optimizer, self._parameters)
        self._gatherer = Gatherer(self._state, Group(), self.device)

    @property
    @override
    def device(self) -> torch.device:
        return next(self._model.parameters()).device

    @override
    def sequence_logps(self, batch: Batch) -> Tensor:
        logps_S: Tensor = self._model(batch=batch)
        return logps_S

    @override
    def sequence_logps_and_entropies(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logps_S, entropies_S = self._model(batch=batch, with_entropy=True)
        return logps_S, entropies_S

    @override
    def frozen_sequence_logps(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.sequence_logps(batch)

    @override
    def plain_sequence_logps(self, batch: Batch) -> Tensor:
        with self._model.plain():
            return self.frozen_sequence_logps(batch)

    @override
    def reference_sequence_logps(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            if self._frozen is not None:
                logps_S: Tensor = self._frozen(batch=batch)
                return logps_S
            with adapters_off(self._model):
                return self.sequence_logps(batch)

    @override
    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    @override
    def optimizer_step(self, learning_rate: float) -> float:
        set_learning_rate(self._optimizer, learning_rate)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm))
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @override
    def parameter_names(self) -> list[str]:
        return list(self._parameters)

    @override
    def host_tensor(self, item: Item) -> Tensor:
        return empty_like(self._parameters[item.name], item.kind, self._optimizer)

    @override
    def gather(self, shares: Sequence[Sequence[Item]], host: Mapping[Item, Tensor]) -> None:
        self._gatherer.gather(shares, host)

    @override
    def restore(self, num_steps_done: int, read: ReadTensor) -> None:
        self._state.restore(num_steps_done, read)


def empty_like(parameter: Tensor, kind: TensorKind, optimizer: torch.optim.Optimizer) -> Tensor:
    """Return an empty tensor on the CPU for a replicated parameter or for a moment of it."""
    is_compact = kind is not TensorKind.WEIGHT and isinstance(optimizer, CompactAdamW)
    return torch.empty(parameter.shape, dtype=torch.float32 if is_compact else parameter.dtype)
