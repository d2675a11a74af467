"""DeepSpeed behind the backend protocol: ZeRO 0 to 3 on CPU and GPU. The only file that imports deepspeed.

Two of its habits are handled here and nowhere else. It divides gradients by the world size and by
gradient_accumulation_steps: accumulation is therefore 1 in its configuration and the boundary is set by hand (the
number of micro-batches differs from step to step), and the loss is multiplied by the world size. And its own
checkpoints are bound to a world size and a stage: state goes in and out as whole fp32 tensors per parameter instead.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from wrpo_engine.config import OptimizerParams, Runtime
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.backend import ReadTensor, TensorKind
from wrpo_engine.training.collate import Batch
from wrpo_engine.training.collectives import Group, peer_errors
from wrpo_engine.training.model import PREFIX, LogpModel
from wrpo_engine.training.single_process import full_adam_tensor, make_adamw, restore_adam, set_learning_rate

_MOMENTS = (TensorKind.EXP_AVG, TensorKind.EXP_AVG_SQ)


def effective_zero_stage(params: OptimizerParams) -> int:
    """Return the stage that runs: stage 0 has no place for bf16's fp32 master weights, and 1 computes the same."""
    return 1 if params.zero_stage == 0 and params.precision == "bfloat16" else params.zero_stage


def deepspeed_config(params: OptimizerParams, runtime: Runtime, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's own configuration."""
    stage = effective_zero_stage(params)
    _check_offload(stage, runtime)
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "contiguous_gradients": stage > 0}
    if runtime.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if runtime.offload == "optimizer-and-parameters":
        zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": params.precision == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    if stage > 0:
        # Stage 0 in fp32 reports no norm; there the backend clips by itself.
        config["gradient_clipping"] = params.max_grad_norm
    return config


def _check_offload(stage: int, runtime: Runtime) -> None:
    needed = {"none": 0, "optimizer": 1, "optimizer-and-parameters": 3}[runtime.offload]
    if stage < needed:
        raise ConfigError(
            "training.offload",
            runtime.offload,
            f"it needs ZeRO stage {needed} or above, and zeroStage is {stage}",
            f"Set training.zeroStage to {needed} or leave offload out.",
        )


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # It insists on a launcher's variable; a single process has no launcher.
    os.environ.setdefault("LOCAL_RANK", "0")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops

    # Compiled at first use by a minute of C++, and used for inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that PyTorch renamed: one line for every call otherwise.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    return deepspeed


class DeepSpeedBackend:
    """One rank of a DeepSpeed engine."""

    def __init__(self, model: LogpModel, params: OptimizerParams, runtime: Runtime, group: Group) -> None:
        deepspeed = _import_deepspeed()
        self._group = group
        self._max_grad_norm = params.max_grad_norm
        self._stage = effective_zero_stage(params)
        self._has_master_copy = params.precision == "bfloat16"
        self._parameters = {
            name.removeprefix(PREFIX): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        if torch.cuda.is_available() and self._stage < 3:
            model.to(torch.device("cuda", torch.cuda.current_device()))
        with peer_errors():
            deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=make_adamw(list(self._parameters.values()), params),
                config=deepspeed_config(params, runtime, group.world_size),
            )

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def _forward(self, batch: Batch) -> Tensor:
        with peer_errors():
            logps_S: Tensor = self._engine(batch=batch)
        return logps_S

    def sequence_logps(self, batch: Batch) -> Tensor:
        if not self._engine.module.training:
            self._engine.train()
        return self._forward(batch)

    def frozen_sequence_logps(self, batch: Batch) -> Tensor:
        # Evaluation mode also keeps ZeRO-3's prefetcher from recording a forward pass that has no backward pass.
        if self._engine.module.training:
            self._engine.eval()
        with torch.no_grad():
            return self._forward(batch)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        with peer_errors():
            self._engine.backward(loss * self._group.world_size)

    def optimizer_step(self, learning_rate: float) -> float:
        set_learning_rate(self._engine.optimizer, learning_rate)
        norm = None
        if self._stage == 0:
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm))
        with peer_errors():
            self._engine.step()
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    def parameter_names(self) -> list[str]:
        return list(self._parameters)

    def full_tensor(self, name: str, kind: TensorKind) -> Tensor:
        parameter = self._parameters[name]
        if self._stage == 0:
            return full_adam_tensor(self._engine.optimizer, parameter, kind)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        with peer_errors():
            if kind is TensorKind.WEIGHT:
                full = safe_get_full_fp32_param(parameter)
            else:
                full = safe_get_full_optimizer_state(parameter, kind.value)
        on_cpu: Tensor = full.detach().to("cpu", torch.float32, copy=True)
        return on_cpu

    def restore(self, num_steps_done: int, read: ReadTensor) -> None:
        """Put master weights and moments back; the model's own weights were loaded before DeepSpeed took them."""
        if self._stage == 0:
            restore_adam(self._engine.optimizer, self._parameters, num_steps_done, read)
        elif self._stage == 3:
            self._restore_stage_3(num_steps_done, read)
        else:
            self._restore_stage_1_2(num_steps_done, read)

    def _restore_stage_1_2(self, num_steps_done: int, read: ReadTensor) -> None:
        zero = self._engine.optimizer
        # In bf16 at stage 1 DeepSpeed uses an optimizer of its own, with another name for the same partitions.
        name_of_partitions = "single_partition_of_fp32_groups"
        if not hasattr(zero, name_of_partitions):
            name_of_partitions = "fp32_groups_flat_partition"
        _make_state(zero.optimizer, getattr(zero, name_of_partitions), num_steps_done)
        # The map from parameters to their slices of the optimizer state is otherwise made at the end of the first step.
        zero._lazy_init_hp_params_optimizer_state()  # noqa: SLF001
        for name, parameter in self._parameters.items():
            parameter.set_full_hp_param(read(name, TensorKind.WEIGHT))  # type: ignore[attr-defined]
            for kind in _MOMENTS:
                parameter.set_full_hp_param(read(name, kind), kind.value)  # type: ignore[attr-defined]

    def _restore_stage_3(self, num_steps_done: int, read: ReadTensor) -> None:
        zero = self._engine.optimizer
        _make_state(zero.optimizer, zero.fp32_partitioned_groups_flat, num_steps_done)
        for name, parameter in self._parameters.items():
            for kind in (TensorKind.WEIGHT, *_MOMENTS):
                part = _own_partition(read(name, kind), parameter, self._group)
                zero.set_local_hp_param(part, parameter, None if kind is TensorKind.WEIGHT else kind.value)


def _make_state(optimizer: Any, flat_groups: list[Tensor], num_steps_done: int) -> None:
    for flat in flat_groups:
        optimizer.state[flat] = {
            "step": torch.tensor(float(num_steps_done), device=flat.device),
            **{kind.value: torch.zeros_like(flat, requires_grad=False) for kind in _MOMENTS},
        }


def _own_partition(full: Tensor, parameter: Any, group: Group) -> Tensor:
    """Return this rank's slice of a parameter as ZeRO-3 cuts it: equal slices, the last one padded with zeros."""
    size = parameter.partition_numel()
    padded = torch.zeros(size * group.world_size, dtype=torch.float32)
    padded[: full.numel()] = full.flatten()
    return padded.narrow(0, size * group.rank, size)
