"""What the operator renders for training passes the engine's search for settings without effect."""

from __future__ import annotations

from typing import Any

import pytest
from support.builders import make_experiment, make_planned

from wrpo_engine.config import Objective, TrainParams
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.objectives.preference import preference_objective
from wrpo_engine.training.objectives.settings import require_effect
from wrpo_operator.render.common import CONFIG_FILE, config_map

OBJECTIVES = [objective.value for objective in Objective if objective is not Objective.SFT_ONLY]


def check(stage: str, **training: Any) -> None:
    experiment = make_experiment(training=training)
    assert experiment.spec is not None
    manifest = config_map(experiment, experiment.spec, make_planned(experiment, stage))
    config = StageConfig.model_validate_json(manifest["data"][CONFIG_FILE])
    params: Any = config.params
    needs_reference = isinstance(params, TrainParams) and preference_objective(params).needs_reference
    require_effect(params, config.runtime, needs_reference=needs_reference)


@pytest.mark.parametrize("stage", ["sft", "train"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_defaults_that_are_written_out_are_no_choice_of_the_users(stage: str, objective: str) -> None:
    check(stage, objective=objective)
    check(stage, objective=objective, microBatchSize=2)


def test_what_the_user_chose_in_vain_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.reference is 'in-memory': it has no effect"):
        check("train", objective="SimPO", reference="in-memory")
    with pytest.raises(ConfigError, match=r"training\.microBatchTokens is 16: it has no effect with"):
        check("train", microBatchSize=2, microBatchTokens=16)
    check("sft", objective="WRPO-DPO", reference="in-memory")
