"""What the parameters of stages refer to: artifacts, models and rewards."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wrpo_engine.contract.base import Role
from wrpo_engine.contract.data import PinnedFields, RewardFields, TemplateFields


class ArtifactRef(BaseModel):
    """Address of an artifact: `<storage>/<stage>/<hash>/`, where stage is e.g. `sample/qwen`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)?$")
    hash: str = Field(pattern=r"^[0-9a-f]{16}$")


class ModelRef(PinnedFields, TemplateFields, role=Role.COMPUTED):
    """A model: exactly one of `name` and `input`."""

    name: str | None = None
    """Hugging Face hub id, absolute path, or storage://PATH for a directory below the storage root."""
    input: str | None = None
    """Key of `inputs`: the model made by an upstream stage."""

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelRef:
        if (self.name is None) == (self.input is None):
            raise ValueError("model needs exactly one of name and input")
        return self


class RewardModel(PinnedFields, TemplateFields, RewardFields, role=Role.COMPUTED):
    """The source of rewards: a model `name`, a Python `function` or an HTTP `endpoint`, exactly one of them.

    A function is (prompts: list[str], responses: list[str]) -> list[float]. An endpoint gets POST {endpoint}/pooling,
    with a key from WRPO_REWARD_API_KEY.
    """

    name: str | None = None
    """A sequence classifier with one label, or a model with ArmoRM's multi-objective gated head."""

    @model_validator(mode="after")
    def _exactly_one(self) -> RewardModel:
        if sum(value is not None for value in (self.name, self.function, self.endpoint)) != 1:
            raise ValueError("reward needs exactly one of name, function and endpoint")
        return self

    @property
    def identity(self) -> str:
        """For logs and tables."""
        return self.name or self.function or self.endpoint or ""
