"""DeepSpeed's configuration, without DeepSpeed."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_engine.config import OptimizerParams, Runtime
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.deepspeed_backend import deepspeed_config


def config(*, offload: str = "none", **changes: Any) -> dict[str, Any]:
    params = OptimizerParams.model_validate({"learning_rate": 1e-6, **changes})
    return deepspeed_config(params, Runtime.model_validate({"offload": offload}), world_size=4)


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


def test_clipping_is_deepspeeds_where_it_reports_the_norm() -> None:
    assert config(zero_stage=2, max_grad_norm=0.5)["gradient_clipping"] == 0.5
    assert "gradient_clipping" not in config(zero_stage=0, precision="float32")


def test_offload_moves_what_it_names() -> None:
    zero = config(zero_stage=3, offload="optimizer-and-parameters")["zero_optimization"]
    assert (zero["offload_optimizer"], zero["offload_param"]) == ({"device": "cpu"}, {"device": "cpu"})


TOO_LOW = {
    "optimizer state is not partitioned": ("float32", 0, "optimizer", 1),
    "parameters are not partitioned": ("bfloat16", 2, "optimizer-and-parameters", 3),
}


@pytest.mark.parametrize(("precision", "stage", "offload", "needed"), TOO_LOW.values(), ids=TOO_LOW.keys())
def test_offload_without_its_stage_is_refused(precision: str, stage: int, offload: str, needed: int) -> None:
    with pytest.raises(ConfigError) as caught:
        config(precision=precision, zero_stage=stage, offload=offload)
    assert str(caught.value) == (
        f"training.offload is '{offload}': it needs ZeRO stage {needed} or above, and zeroStage is {stage}"
    )
