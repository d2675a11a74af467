"""Parameters of the stages that make the training data, and of the report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wrpo_engine.contract.base import Role, StageParams
from wrpo_engine.contract.data import ChoiceFields, ModelUse, PromptFields, ReportFields, RowRules, ScoreFields
from wrpo_engine.contract.references import ModelRef, RewardModel
from wrpo_engine.contract.sampling import PartFields, SourceFields
from wrpo_engine.contract.types import Revision


class PrepareParams(PromptFields, StageParams, role=Role.COMPUTED):
    """Read prompts, drop empty and duplicate ones (counted), split them. Prompt ids are sha256 of the prompt text."""

    stage: Literal["prepare"] = "prepare"
    evaluation_prompts: int = Field(default=0, ge=0)
    """Held-out prompts, taken before the SFT split, from `evaluation_dataset` if set, else from `dataset`."""
    evaluation_dataset: str | None = None
    evaluation_revision: Revision | None = None
    """Version of `evaluation_dataset`."""


class FetchParams(StageParams, role=Role.COMPUTED):
    """Download a model into the storage's model cache: resumable, its revision pinned, its files with checksums."""

    stage: Literal["fetch"] = "fetch"
    model: ModelRef


class InspectParams(StageParams, role=Role.COMPUTED):
    """Read the size and shape of a model from its config and the headers of its weights, and check that it can load."""

    stage: Literal["inspect"] = "inspect"
    model: ModelRef
    uses: tuple[ModelUse, ...] = ()
    """Uses of the model. A model that cannot serve one of them is refused."""


class SampleParams(SourceFields, PartFields, StageParams, role=Role.COMPUTED):
    """Sample `samples_per_prompt` responses to each prompt. Seeds come from (seed, model, prompt id, sample index).

    `engine_args` are those that change what is computed; the others are in the runtime, see SPEED_ENGINE_ARGS.
    """

    stage: Literal["sample"] = "sample"
    model: ModelRef
    source: str
    """Name of the source in the experiment, or `target`."""
    parts: tuple[Literal["sft", "preference", "evaluation"], ...] = ("sft", "preference")


class ScoreParams(ScoreFields, StageParams, role=Role.COMPUTED):
    """Score every response of one samples artifact with one reward."""

    stage: Literal["score"] = "score"
    reward: RewardModel


class _CurateParams(ChoiceFields, StageParams, role=Role.COMPUTED):
    """Fields that both curations share."""

    reward_weights: dict[str, float] = Field(default_factory=dict)
    """Reward name -> weight: the score is the weighted mean over them. Empty: one reward, roles without a name."""


class CurateSftParams(_CurateParams, role=Role.COMPUTED):
    """Choose y_ws, the best source response to an SFT prompt."""

    stage: Literal["curate-sft"] = "curate-sft"


class CurateTriplesParams(RowRules, _CurateParams, role=Role.COMPUTED):
    """Choose (y_ws, y_wt, y_l) for every preference prompt.

    The pairings WithinSource and BestWorst give pairs, for DPO, SimPO and IPO: chosen in the column of y_wt, rejected
    in that of y_l, no y_ws.
    """

    stage: Literal["curate-triples"] = "curate-triples"


class ReportParams(ReportFields, StageParams, role=Role.COMPUTED):
    """One self-contained HTML file from the manifests and metrics of all upstream stages."""

    stage: Literal["report"] = "report"
    title: str
