"""Every parameter of a stage is read by the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel
from support.field_reads import Reads

import wrpo_engine
from wrpo_engine.config import ReportParams, Runtime, SampleParams, TrainParams
from wrpo_engine.contract import data, references, runtime, sampling, stage_params, training, training_params
from wrpo_engine.contract.base import Declared
from wrpo_engine.contract.builtin import BUILT_IN
from wrpo_engine.contract.sampling import TokenChoiceFields
from wrpo_engine.contract.stage_config import StageConfig

PACKAGE = Path(wrpo_engine.__file__).parent
STAGES: tuple[type[BaseModel], ...] = tuple(definition.params for definition in BUILT_IN)
MODELS: dict[str, type[BaseModel]] = {
    "StageConfig": StageConfig,
    "TokenChoiceFields": TokenChoiceFields,
    **{
        name: model
        for module in (data, references, runtime, sampling, stage_params, training, training_params)
        for name, model in vars(module).items()
        if isinstance(model, type) and issubclass(model, Declared)
    },
}
FIELDS = sorted(
    (name, field)
    for name, model in MODELS.items()
    if model in {*STAGES, Runtime} or name in {"ModelRef", "RewardModel"} or name.endswith("Params")
    for field in model.model_fields
    if field != "stage"  # tells the models apart
)


@pytest.fixture(scope="module")
def reads() -> Reads:
    found = Reads(MODELS)
    found.scan(path for path in PACKAGE.rglob("*.py") if path.parent.name != "contract")
    return found


def test_every_parameter_is_read_by_the_engine(reads: Reads) -> None:
    unread = [f"{model}.{field}" for model, field in FIELDS if not reads.is_read(MODELS[model], field)]
    assert unread == [], "nothing in wrpo_engine reads these, so that they have no effect"


def test_a_read_of_the_same_name_on_another_model_does_not_count(reads: Reads) -> None:
    assert reads.is_read(SampleParams, "seed")
    assert reads.is_read(Runtime, "reference")
    assert not reads.is_read(ReportParams, "seed")
    assert not reads.is_read(TrainParams, "reference")
