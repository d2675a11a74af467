"""DeepSpeed's configuration, without DeepSpeed."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_engine.config import OptimizerParams, Runtime
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.backends.deepspeed import check_settings, deepspeed_config
from wrpo_engine.training.backends.offload import check_compile, check_nvme, offload_sections


def config(*, offload: str = "none", nvme: str | None = None, **changes: Any) -> dict[str, Any]:
    params = OptimizerParams.model_validate({"learning_rate": 1e-6, **changes})
    runtime = Runtime.model_validate({"offload": offload, "offload_nvme_path": nvme})
    return deepspeed_config(params, runtime, world_size=4)


def test_accumulation_is_never_left_to_deepspeed() -> None:
    made = config()
    assert (made["gradient_accumulation_steps"], made["train_batch_size"]) == (1, 4)


def test_bfloat16_trains_with_fp32_master_weights_and_gradients() -> None:
    made = config(precision="bfloat16", zero_stage=2)
    assert made["bf16"] == {"enabled": True}
    assert made["data_types"] == {"grad_accum_dtype": "fp32"}


def test_bfloat16_at_stage_0_runs_as_stage_1_which_has_master_weights() -> None:
    assert config(precision="bfloat16", zero_stage=0)["zero_optimization"]["stage"] == 1
    assert config(precision="float32", zero_stage=0)["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize(("stage", "asked", "overlaps"), [(3, True, True), (3, False, False), (2, True, False)])
def test_communication_overlaps_at_stage_3_on_request(stage: int, asked: bool, overlaps: bool) -> None:
    params = OptimizerParams.model_validate({"learning_rate": 1e-6, "zero_stage": stage})
    made = deepspeed_config(params, Runtime(overlap_communication=asked), world_size=2)
    assert made["zero_optimization"]["overlap_comm"] is overlaps


def test_clipping_is_deepspeeds_where_it_reports_the_norm() -> None:
    assert config(zero_stage=2, max_grad_norm=0.5)["gradient_clipping"] == 0.5
    assert "gradient_clipping" not in config(zero_stage=0, precision="float32")


def test_offload_moves_what_it_names() -> None:
    zero = config(zero_stage=3, offload="optimizer-and-parameters")["zero_optimization"]
    assert (zero["offload_optimizer"], zero["offload_param"]) == ({"device": "cpu"}, {"device": "cpu"})


def test_offload_to_a_hosts_memory_is_pinned_for_gpus() -> None:
    for path, target in ((None, {"device": "cpu"}), ("/nvme", {"device": "nvme", "nvme_path": "/nvme"})):
        runtime = Runtime(offload="optimizer-and-parameters", offload_nvme_path=path)
        sections = offload_sections(runtime, pinned=True)
        assert sections["offload_optimizer"] == sections["offload_param"] == {**target, "pin_memory": True}
    assert offload_sections(Runtime(), pinned=True) == {}


def test_gradients_are_added_in_the_number_format_that_is_asked_for() -> None:
    made = config(precision="bfloat16", gradient_accumulation_dtype="bfloat16")
    assert made["data_types"] == {"grad_accum_dtype": "bf16"}


FORMATS = {
    "gradients of fp32 in bf16": (
        {"precision": "float32", "gradient_accumulation_dtype": "bfloat16"},
        None,
        (
            "training.gradientAccumulationDtype is 'bfloat16': "
            "gradients are computed in float32, most of whose digits a sum in bfloat16 would lose"
        ),
    ),
    "compact moments on a disk": (
        {"optimizer_moments": "8bit"},
        "/nvme",
        "training.optimizerMoments is '8bit': offload to NVMe supports moments in float32 only",
    ),
}


@pytest.mark.parametrize(("changes", "nvme", "message"), FORMATS.values(), ids=FORMATS.keys())
def test_number_formats_that_do_not_work_with_other_settings_are_refused(
    changes: dict[str, Any], nvme: str | None, message: str
) -> None:
    params = OptimizerParams.model_validate({"learning_rate": 1e-6, **changes})
    runtime = Runtime(offload="optimizer" if nvme else "none", offload_nvme_path=nvme)
    with pytest.raises(ConfigError) as caught:
        check_settings(params, runtime, "padded")
    assert str(caught.value) == message


TOO_LOW = {
    "optimizer state is not partitioned": ("float32", 0, "optimizer", 1),
    "parameters are not partitioned": ("bfloat16", 2, "optimizer-and-parameters", 3),
}


@pytest.mark.parametrize(("precision", "stage", "offload", "needed"), TOO_LOW.values(), ids=TOO_LOW.keys())
def test_offload_without_its_stage_is_refused(precision: str, stage: int, offload: str, needed: int) -> None:
    with pytest.raises(ConfigError) as caught:
        config(precision=precision, zero_stage=stage, offload=offload)
    assert str(caught.value) == (
        f"training.offload is '{offload}': it needs ZeRO stage {needed} or above, but zeroStage is {stage}"
    )


def test_offload_to_nvme_names_the_directory() -> None:
    zero = config(zero_stage=3, offload="optimizer-and-parameters", nvme="/nvme")["zero_optimization"]
    assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "nvme", "nvme_path": "/nvme"}


NVME = {
    "nothing is offloaded": ({"zero_stage": 3}, "nothing is offloaded to it: training.offload is none"),
    "stage 2": ({"zero_stage": 2, "offload": "optimizer"}, "offload to NVMe needs ZeRO stage 3, but zeroStage is 2"),
}


@pytest.mark.parametrize(("settings", "rule"), NVME.values(), ids=NVME.keys())
def test_offload_to_nvme_is_refused_where_it_would_do_nothing(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(nvme="/nvme", **settings)
    assert str(caught.value) == f"training.offloadNvmePath is '/nvme': {rule}"


def test_nvme_needs_asynchronous_io_only_where_it_is_asked_for() -> None:
    check_nvme(Runtime(), has_async_io=False)
    check_nvme(Runtime(offload_nvme_path="/nvme"), has_async_io=True)
    with pytest.raises(ConfigError, match="libaio"):
        check_nvme(Runtime(offload_nvme_path="/nvme"), has_async_io=False)


def compiled(stage: int, layout: str, **changes: Any) -> None:
    params = OptimizerParams.model_validate({"learning_rate": 1e-6, **changes})
    check_compile(stage, params, Runtime(torch_compile=True), layout)


COMPILE = {
    "stage 3": ((3, "padded"), {}, "training.zeroStage 3"),
    "checkpointing": ((1, "padded"), {"gradient_checkpointing": True}, "training.gradientCheckpointing"),
    "adapters": ((1, "padded"), {"lora": {}}, "training.lora"),
    "layout": ((1, "shared-prefix"), {}, "the layout shared-prefix"),
}


@pytest.mark.parametrize(("where", "settings", "conflict"), COMPILE.values(), ids=COMPILE.keys())
def test_compilation_is_refused_where_it_does_not_work(
    where: tuple[int, str], settings: dict[str, Any], conflict: str
) -> None:
    compiled(2, "padded")
    with pytest.raises(ConfigError, match=conflict) as caught:
        compiled(*where, **settings)
    assert caught.value.field == "training.torchCompile"
