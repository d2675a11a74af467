"""Parameters of the training stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wrpo_engine.contract.base import Declared, Role, StageParams
from wrpo_engine.contract.fusion import FusionLoss
from wrpo_engine.contract.objectives import Objective
from wrpo_engine.contract.references import ModelRef
from wrpo_engine.contract.training import OptimizerFields, PreferenceFields, SftFields, SharedFields
from wrpo_engine.contract.types import LearningRate


class OptimizerParams(SharedFields, OptimizerFields, StageParams, role=Role.COMPUTED):
    """AdamW and its schedule, as both training stages use it."""

    learning_rate: LearningRate
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)


class SftParams(SftFields, OptimizerParams, role=Role.COMPUTED):
    """Supervised fine-tuning of the target on (x, y_ws); loss on response tokens."""

    stage: Literal["sft"] = "sft"
    model: ModelRef
    fusion: FusionLoss | None = None
    """Add the fusion loss of an align stage's distributions (FuseLLM, FuseChat). Unset: none."""


class FuseParams(SftParams, role=Role.COMPUTED):
    """SFT of the target for a system of the evaluation, with the fusion loss; nothing else trains on its model."""

    stage: Literal["fuse"] = "fuse"  # type: ignore[assignment]  # Each kind of stage has one name.


class ObjectiveFields(Declared, role=Role.COMPUTED):
    """The choice of the loss."""

    objective: Objective = Objective.WRPO_DPO
    """Loss. SFTOnly stops after SFT."""


class TrainParams(PreferenceFields, ObjectiveFields, OptimizerParams, role=Role.COMPUTED):
    """Preference optimisation from the SFT checkpoint, which is also the reference."""

    stage: Literal["train"] = "train"
    model: ModelRef
    tokenized_triples: str | None = None
    """Train on these token ids instead of the role `triples`: path or storage://PATH of a Parquet file, a directory of
    them, or a saved `datasets` directory, with integer lists prompt_ids, source_chosen_ids, target_chosen_ids and
    rejected_ids. They are used unchanged: no template, nothing added, nothing cut."""
