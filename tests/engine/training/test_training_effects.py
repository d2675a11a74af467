"""Settings that cannot take effect are errors, but defaults that a program wrote are not."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_engine.config import Objective, Runtime, SftParams, TrainParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.training import stage
from wrpo_engine.training.objectives.preference import preference_objective
from wrpo_engine.training.objectives.settings import require_effect

MODEL = {"model": {"name": "/m"}}
IDS = {"tokenized_triples": "/data/triples.parquet"}

NO_CUT = "it has no effect with training.tokenizedTriples: token ids are used unchanged, no triple is cut or left out"
FIXED = "it has no effect with training.microBatchSize 2, which fixes the rows of a forward pass"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "a reference in memory for SimPO": (
        {"objective": "SimPO"},
        {"reference": "in-memory"},
        "training.reference is 'in-memory': it has no effect: objective SimPO has no reference model",
        "Remove training.reference.",
    ),
    "a maximum of tokens with a number of rows": (
        {},
        {"micro_batch_tokens": 8192, "micro_batch_size": 2},
        f"training.microBatchTokens is 8192: {FIXED}",
        "Give one of training.microBatchTokens and training.microBatchSize.",
    ),
    "a prompt's length with token ids": (
        {**IDS, "max_prompt_length": 1800},
        {},
        f"training.maxPromptLength is 1800: {NO_CUT}",
        "Remove training.maxPromptLength, and cut the triples before training if they are too long.",
    ),
    "a length with token ids": (
        {**IDS, "max_length": 64},
        {},
        f"training.maxLength is 64: {NO_CUT}",
        "Remove training.maxLength, and cut the triples before training if they are too long.",
    ),
}


def check(params: TrainParams, runtime: Runtime) -> None:
    require_effect(params, runtime, needs_reference=preference_objective(params).needs_reference)


@pytest.mark.parametrize(("params", "runtime", "message", "hint"), REFUSED.values(), ids=REFUSED.keys())
def test_a_setting_without_effect_is_refused_at_any_value(
    params: dict[str, Any], runtime: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(TrainParams.model_validate({**MODEL, **params}), Runtime.model_validate(runtime))
    assert (str(caught.value), caught.value.hint, caught.value.exit_code) == (message, hint, 78)


def test_sft_has_no_reference_either() -> None:
    with pytest.raises(
        ConfigError, match=r"training\.reference is 'in-memory': it has no effect: SFT has no reference"
    ):
        require_effect(SftParams.model_validate(MODEL), Runtime(reference="in-memory"), needs_reference=False)


def test_a_stage_looks_before_it_loads_anything(make_ctx: Any) -> None:
    params = {"stage": "train", **MODEL, **IDS, "objective": "WRPO-SimPO"}
    with pytest.raises(ConfigError, match="objective WRPO-SimPO has no reference model"):
        stage.run_train(make_ctx(params, {}, runtime={"reference": "in-memory"}))


@pytest.mark.parametrize("objective", [kind for kind in Objective if kind is not Objective.SFT_ONLY])
def test_defaults_in_a_configuration_that_a_program_wrote_are_not_explicitly_set(objective: Objective) -> None:
    params, runtime = TrainParams.model_validate({**MODEL, **IDS, "objective": objective}), Runtime(micro_batch_size=2)
    for exclude_none in (False, True):
        written = params.model_dump(mode="json", exclude_none=exclude_none)
        written_runtime = runtime.model_dump(mode="json", exclude_none=exclude_none)
        check(TrainParams.model_validate(written), Runtime.model_validate(written_runtime))
    with pytest.raises(ConfigError, match=r"training\.microBatchTokens is 16:"):
        check(params, Runtime.model_validate({**written_runtime, "micro_batch_tokens": 16}))
    with pytest.raises(ConfigError, match=r"training\.maxLength is 9:"):
        check(TrainParams.model_validate({**written, "max_length": 9}), runtime)


def test_settings_of_two_objectives_are_explicitly_set() -> None:
    """Only a program writes the settings of all objectives."""
    with pytest.raises(ConfigError, match=r"^training\.gamma is 0\.0: it has no effect with objective WRPO-IPO"):
        preference_objective(TrainParams.model_validate({**MODEL, "objective": "WRPO-IPO", "gamma": 0.0, "tau": 0.1}))
