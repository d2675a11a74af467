"""Definition of a stage: everything that engine and operator know of one kind of stage.

A definition is data. The functions it names (`run`, `wiring`) are imported by the process that calls them, so neither
torch nor the operator is loaded with it. A definition that lacks a field or breaks a rule raises a ValidationError when
its module is imported.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wrpo_engine.contract.base import StageParams

_Reference = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
_Text = Annotated[str, Field(min_length=1)]
_Role = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
_KIND = re.compile(r"[a-z]([a-z0-9-]{0,19}[a-z0-9])?")
"""A kind is part of labels, of the names of children and of addresses."""
EVERY_ROLE = "*"
"""In `inputs`: the stage reads the artifact of every stage that has a place in the report."""


class Shape(StrEnum):
    """The child that a stage becomes."""

    INDEXED_JOB = "IndexedJob"
    """Pods that share the work; the shard is JOB_COMPLETION_INDEX."""
    JOB = "Job"
    """One pod."""
    TRAINING = "Training"
    """A gang: the pods are nodes of one process group. The child is a training backend's resource, e.g. PyTorchJob."""


class Image(StrEnum):
    """The image of a stage's pods: a field of spec.images."""

    SAMPLER = "sampler"
    """With vLLM."""
    TRAINER = "trainer"
    """With DeepSpeed."""


class Per(StrEnum):
    """Unit for which an experiment has one stage of this kind; all but the first are named, e.g. sample/qwen."""

    EXPERIMENT = "experiment"
    SOURCE = "source"
    """Each source that is used, and the target."""
    MODEL = "model"
    """Each model. The graph adds the stage if another one needs the model."""
    CELL = "cell"
    """Each benchmark, system or judgement of the evaluation; the wiring adds all of them."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Section(_Entry):
    """A key of spec.resources and of spec.deadlines.stages; several kinds of stage may share one."""

    name: str = Field(pattern=r"^[a-z][A-Za-z0-9]*$")
    resources: _Text
    """Description of spec.resources.NAME."""
    deadlines: _Text
    """Description of spec.deadlines.stages.NAME."""

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if hasattr(BaseModel, name):
            raise ValueError(f"{name!r} is an attribute of all models and cannot be a field; choose another name")
        return name


class ReportPlace(_Entry):
    """Place and content of a stage in the report."""

    column: int = Field(ge=0)
    """Column of the pipeline; stages of one column do not need each other."""
    column_of_target: int | None = Field(default=None, ge=0)
    """Column of the target's stage if the kind has a stage per source; unset: the same."""
    counts: str = Field(pattern=r"^[a-z]+$")
    """Unit of the number of rows in the manifest, e.g. rows or steps."""
    key_metrics: tuple[str, ...]
    """Metrics shown in the pipeline."""


class StageDefinition(_Entry):
    """One kind of stage. Every field is required."""

    params: type[StageParams]
    """Its parameters. Their field `stage` names the kind."""
    run: _Reference
    """module:function in the engine: (StageContext) -> StageResult."""
    wiring: _Reference
    """module:function in the operator that adds its stages to an experiment's graph if the spec requires them:
    (Graph) -> None, or (Graph, Member) -> None if `per` is SOURCE. Unused if `per` is MODEL."""
    role: _Role
    """Role by which other stages read its artifact; the name of a named stage follows, e.g. samples/qwen."""
    inputs: tuple[str, ...]
    """Roles it may read, without the names that follow them, or EVERY_ROLE. Models downloaded beforehand (the role
    fetch) are allowed in addition."""
    per: Per
    shape: Shape
    image: Image
    section: Section
    """Key of its resources and deadlines."""
    uses_reward: bool
    """Whether its pods get the API key of the reward's endpoint."""
    weight: int = Field(ge=1)
    """Usual share of an experiment's time. It affects the evenness of the progress and the order in which stages start,
    but no result."""
    report: ReportPlace | None
    """None: the report neither reads nor shows it."""
    summary: _Text
    """Line of `wrpo-engine --help`."""
    makes: _Text
    """Description of its artifact, for the documentation."""
    reuse: _Reference | None
    """module:function in the engine: (StageContext, Artifact) -> ModelFacts | None, called if its artifact exists.
    None: the stage is not about a model."""

    @property
    def kind(self) -> str:
        """Name of the kind: the engine's sub-command."""
        return self.params.kind()

    @property
    def is_named(self) -> bool:
        """Whether a name follows the kind in the stage's name and address."""
        return self.per is not Per.EXPERIMENT

    @field_validator("params")
    @classmethod
    def _names_one_kind(cls, params: type[StageParams]) -> type[StageParams]:
        field = params.model_fields.get("stage")
        kinds = get_args(field.annotation) if field is not None else ()
        if field is None or kinds != (field.default,):
            raise ValueError(f'{params.__name__} must name its kind: add the field `stage: Literal["KIND"] = "KIND"`')
        if _KIND.fullmatch(params.kind()) is None:
            raise ValueError(
                f"the kind {params.kind()!r} of {params.__name__} must consist of at most 21 lower-case letters, "
                "digits and dashes, a letter first and no dash last"
            )
        return params

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> StageDefinition:
        target_column = self.report.column_of_target if self.report is not None else None
        if target_column is not None and self.per is not Per.SOURCE:
            raise ValueError("report.column_of_target is for kinds with per=SOURCE; remove it")
        return self
