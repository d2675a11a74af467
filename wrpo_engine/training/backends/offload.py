"""Supported combinations of ZeRO stage, offload and compilation; ConfigError names the field of any other one."""

from __future__ import annotations

from typing import Any

from wrpo_engine.config import OptimizerParams, Runtime
from wrpo_engine.errors import ConfigError

_STAGE_NEEDED = {"none": 0, "optimizer": 1, "optimizer-and-parameters": 3}


def effective_zero_stage(params: OptimizerParams) -> int:
    """Return the ZeRO stage that runs.

    Stage 0 has no fp32 master weights for bf16. Stage 1 has them and computes the same, so it replaces stage 0 there.
    """
    return 1 if params.zero_stage == 0 and params.precision == "bfloat16" else params.zero_stage


def check_offload(stage: int, runtime: Runtime) -> None:
    """Raise ConfigError if the ZeRO stage does not support the offload."""
    needed = _STAGE_NEEDED[runtime.offload]
    if stage < needed:
        raise ConfigError(
            "training.offload",
            runtime.offload,
            f"it needs ZeRO stage {needed} or above, but zeroStage is {stage}",
            f"Set training.zeroStage to {needed} or leave offload out.",
        )
    if runtime.offload_nvme_path is None:
        return
    if runtime.offload == "none":
        raise ConfigError(
            "training.offloadNvmePath",
            runtime.offload_nvme_path,
            "nothing is offloaded to it: training.offload is none",
            "Set training.offload to optimizer or optimizer-and-parameters, or leave offloadNvmePath out.",
        )
    if stage != 3:
        raise ConfigError(
            "training.offloadNvmePath",
            runtime.offload_nvme_path,
            f"offload to NVMe needs ZeRO stage 3, but zeroStage is {stage}",
            "Set training.zeroStage to 3, or leave offloadNvmePath out and offload to the host's memory.",
        )


def check_nvme(runtime: Runtime, *, has_async_io: bool) -> None:
    """Raise ConfigError for offload to NVMe on a machine without asynchronous I/O."""
    if runtime.offload_nvme_path is not None and not has_async_io:
        raise ConfigError(
            "training.offloadNvmePath",
            runtime.offload_nvme_path,
            "DeepSpeed's asynchronous I/O cannot be built: libaio and its headers or a C++ compiler are missing",
            "Use an image with libaio-dev and g++, or leave offloadNvmePath out and offload to the host's memory.",
        )


def check_compile(stage: int, params: OptimizerParams, runtime: Runtime, layout: str) -> None:
    """Raise ConfigError for torch.compile with settings that would break the graph or change the results."""
    if not runtime.torch_compile:
        return
    conflicts = {
        "training.zeroStage 3, whose hooks gather every layer's weights while it runs": stage == 3,
        "training.gradientCheckpointing": params.gradient_checkpointing,
        "training.lora": params.lora is not None,
        f"the layout {layout}, whose attention is a loop over sequences": layout != "padded",
    }
    found = [what for what, holds in conflicts.items() if holds]
    if found:
        raise ConfigError(
            "training.torchCompile",
            True,
            f"it does not work with {' and with '.join(found)}",
            "Leave torchCompile out, or set training.layout to padded and training.zeroStage to at most 2.",
        )


def check_memory_options(params: OptimizerParams, runtime: Runtime) -> None:
    """Raise ConfigError for number formats of gradients and moments that do not work with other settings."""
    if params.gradient_accumulation_dtype == "bfloat16" and params.precision != "bfloat16":
        raise ConfigError(
            "training.gradientAccumulationDtype",
            params.gradient_accumulation_dtype,
            f"gradients are computed in {params.precision}, most of whose digits a sum in bfloat16 would lose",
            "Set training.precision to bfloat16, or leave gradientAccumulationDtype out.",
        )
    if params.optimizer_moments != "float32" and runtime.offload_nvme_path is not None:
        raise ConfigError(
            "training.optimizerMoments",
            params.optimizer_moments,
            "offload to NVMe supports moments in float32 only",
            "Leave training.offloadNvmePath out and offload to the host's memory, or leave optimizerMoments out.",
        )


def offload_sections(runtime: Runtime, *, pinned: bool) -> dict[str, Any]:
    """Return the sections for DeepSpeed's zero_optimization; pinned host memory is for GPUs."""
    if runtime.offload == "none":
        return {}
    path = runtime.offload_nvme_path
    target: dict[str, Any] = {"device": "cpu"} if path is None else {"device": "nvme", "nvme_path": path}
    if pinned:
        # Pageable memory is copied several times slower.
        target["pin_memory"] = True
    sections: dict[str, Any] = {"offload_optimizer": dict(target)}
    if runtime.offload == "optimizer-and-parameters":
        sections["offload_param"] = dict(target)
    return sections
