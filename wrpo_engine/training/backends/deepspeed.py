"""DeepSpeed backend: ZeRO 0 to 3 on CPU and GPU. The only module that imports deepspeed.

Two properties of DeepSpeed are handled here only:

- It divides gradients by the world size and by gradient_accumulation_steps. So the latter is 1 in its configuration,
  the boundary is set by hand because the number of micro-batches varies, and the loss is multiplied by the world size.
- Its checkpoints are bound to a world size and a stage. So state is read and restored as whole fp32 tensors per
  parameter.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from wrpo_engine.config import OptimizerParams, Runtime
from wrpo_engine.training.backends.base import Backend, Item, ReadTensor, TensorKind
from wrpo_engine.training.backends.gathering import Gatherer
from wrpo_engine.training.backends.offload import (
    check_compile,
    check_memory_options,
    check_nvme,
    check_offload,
    effective_zero_stage,
    offload_sections,
)
from wrpo_engine.training.backends.single_process import (
    empty_like,
    make_adamw,
    set_learning_rate,
    undecayed,
)
from wrpo_engine.training.backends.states import ReplicatedState, Zero3State, Zero12State
from wrpo_engine.training.backends.weight_decay import decay_before_every_step
from wrpo_engine.training.batch.collate import Batch
from wrpo_engine.training.distributed.collectives import Group, peer_errors
from wrpo_engine.training.models.lora import adapters_off
from wrpo_engine.training.models.model import PREFIX, LogpModel

_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def deepspeed_config(params: OptimizerParams, runtime: Runtime, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration; raise ConfigError for an offload that the stage does not support."""
    stage = effective_zero_stage(params)
    check_offload(stage, runtime)
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": stage == 3 and runtime.overlap_communication,
        "contiguous_gradients": stage > 0,
        **offload_sections(runtime, pinned=torch.cuda.is_available()),
    }
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": params.precision == "bfloat16"},
        "data_types": {"grad_accum_dtype": _DTYPES[params.gradient_accumulation_dtype]},
    }
    if stage > 0:
        # Stage 0 in fp32 reports no norm, so the backend itself clips there.
        config["gradient_clipping"] = params.max_grad_norm
    return config


def check_settings(params: OptimizerParams, runtime: Runtime, layout: str) -> None:
    """Raise ConfigError for settings that do not work together, before anything is loaded."""
    stage = effective_zero_stage(params)
    check_offload(stage, runtime)
    check_memory_options(params, runtime)
    check_compile(stage, params, runtime, layout)
    if runtime.offload_nvme_path is not None:
        _import_deepspeed()
        from deepspeed.ops.op_builder import AsyncIOBuilder

        check_nvme(runtime, has_async_io=AsyncIOBuilder().is_compatible(verbose=False))


@contextlib.contextmanager
def partitioned_loading(params: OptimizerParams, runtime: Runtime, world_size: int) -> Iterator[None]:
    """At ZeRO stage 3, partition every parameter while `from_pretrained` creates it: no rank holds the whole model."""
    if effective_zero_stage(params) != 3:
        yield
        return
    deepspeed = _import_deepspeed()
    with peer_errors():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # transformers keeps only a weak reference to it and uses it while this variable exists.
    config = HfDeepSpeedConfig(deepspeed_config(params, runtime, world_size))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del config


def _frozen_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the second, frozen model: the same partitioning, no optimizer."""
    zero = {name: value for name, value in config["zero_optimization"].items() if name != "offload_optimizer"}
    return {**config, "zero_optimization": zero}


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed requires this launcher's variable; a single process has no launcher.
    os.environ.setdefault("LOCAL_RANK", "0")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops

    # Its first use would compile C++ for a minute; only inference uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that PyTorch has renamed, which logs one warning per call.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    return deepspeed


class DeepSpeedBackend(Backend):
    """One rank of a DeepSpeed engine."""

    def __init__(
        self,
        model: LogpModel,
        params: OptimizerParams,
        runtime: Runtime,
        group: Group,
        frozen: LogpModel | None = None,
    ) -> None:
        self._stage = effective_zero_stage(params)
        check_settings(params, runtime, model.layout)
        config = deepspeed_config(params, runtime, group.world_size)
        deepspeed = _import_deepspeed()
        self._group = group
        self._max_grad_norm = params.max_grad_norm
        self._parameters = {
            name.removeprefix(PREFIX): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        if torch.cuda.is_available() and self._stage < 3:
            model.to(torch.device("cuda", torch.cuda.current_device()))
        if runtime.torch_compile:
            model.causal_lm.get_decoder().compile(dynamic=True)
        with peer_errors():
            deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
            # At stages 1 and 2 DeepSpeed cannot return the optimizer state of a second group of parameters.
            decays = self._stage in {0, 3}
            optimizer = make_adamw(model, params, decays=decays)
            self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
            if self._stage == 0 and group.world_size == 1:
                # The mean over one rank would only copy all gradients into one buffer and back.
                self._engine.enable_backward_allreduce = False
            if params.weight_decay and not decays:
                exempt = undecayed(model)
                decayed = [
                    value for name, value in model.named_parameters() if value.requires_grad and name not in exempt
                ]
                decay_before_every_step(optimizer, decayed, params.weight_decay)
            self._state = self._make_state()
            alone = Group() if self._stage == 0 else group
            self._gatherer = Gatherer(self._state, alone, self.device)
            self._frozen: Any = frozen
            if frozen is not None:
                frozen.requires_grad_(False).eval()
                if self._stage == 3:
                    self._frozen, *_ = deepspeed.initialize(model=frozen, config=_frozen_config(config))
                else:
                    frozen.to(self.device)

    @property
    @override
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def _forward(self, batch: Batch) -> Tensor:
        with peer_errors():
            logps_S: Tensor = self._engine(batch=batch)
        return logps_S

    @override
    def sequence_logps(self, batch: Batch) -> Tensor:
        if not self._engine.module.training:
            self._engine.train()
        return self._forward(batch)

    @override
    def sequence_logps_and_entropies(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not self._engine.module.training:
            self._engine.train()
        with peer_errors():
            logps_S, entropies_S = self._engine(batch=batch, with_entropy=True)
        return logps_S, entropies_S

    @override
    def frozen_sequence_logps(self, batch: Batch) -> Tensor:
        # Evaluation mode also keeps ZeRO-3's prefetcher from recording a forward pass that has no backward pass.
        if self._engine.module.training:
            self._engine.eval()
        with torch.no_grad():
            return self._forward(batch)

    @override
    def plain_sequence_logps(self, batch: Batch) -> Tensor:
        with self._engine.module.plain():
            return self.frozen_sequence_logps(batch)

    @override
    def reference_sequence_logps(self, batch: Batch) -> Tensor:
        if self._frozen is not None:
            with torch.no_grad(), peer_errors():
                logps_S: Tensor = self._frozen(batch=batch)
            return logps_S
        with adapters_off(self._engine.module):
            return self.frozen_sequence_logps(batch)

    @override
    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        with peer_errors():
            self._engine.backward(loss * self._group.world_size)

    @override
    def optimizer_step(self, learning_rate: float) -> float:
        set_learning_rate(self._engine.optimizer, learning_rate)
        norm = None
        if self._stage == 0:
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm))
            if not math.isfinite(norm):
                self._engine.optimizer.zero_grad()
                return norm
        with peer_errors():
            # From stage 1 on DeepSpeed itself skips a step whose norm is not finite, and reports infinity.
            self._engine.step()
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    @override
    def parameter_names(self) -> list[str]:
        return list(self._parameters)

    @override
    def host_tensor(self, item: Item) -> Tensor:
        parameter: Any = self._parameters[item.name]
        if self._stage == 0:
            return empty_like(parameter, item.kind, self._engine.optimizer)
        return torch.empty(parameter.ds_shape if self._stage == 3 else parameter.shape, dtype=torch.float32)

    @override
    def gather(self, shares: Sequence[Sequence[Item]], host: Mapping[Item, Tensor]) -> None:
        # Replicas need nothing from each other.
        self._gatherer.gather([shares[self._group.rank]] if self._stage == 0 else shares, host)

    def _make_state(self) -> ReplicatedState | Zero12State | Zero3State:
        if self._stage == 0:
            return ReplicatedState(self._engine.optimizer, self._parameters)
        if self._stage == 3:
            return Zero3State(self._engine.optimizer, self._parameters, self._group.rank)
        return Zero12State(self._engine.optimizer, self._parameters)

    @override
    def restore(self, num_steps_done: int, read: ReadTensor) -> None:
        """Restore weights, master weights and moments; they replace the weights that the model was loaded with."""
        if not isinstance(self._state, Zero3State):
            self._state.restore(num_steps_done, read)
            return
        import deepspeed

        for name, parameter in self._parameters.items():
            with peer_errors(), torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if self._group.is_main:
                    parameter.copy_(read(name, TensorKind.WEIGHT))
        self._state.restore_moments(num_steps_done, read)
