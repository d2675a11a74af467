"""JSON configuration of a stage: `wrpo-engine STAGE --config FILE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import BaseModel, ConfigDict, Field

from wrpo_engine.config import ArtifactRef, Runtime, StageParams, Storage
from wrpo_engine.contract.stages import STAGES

if TYPE_CHECKING:
    AnyParams: TypeAlias = StageParams
else:
    AnyParams = Annotated[
        Union[tuple(definition.params for definition in STAGES.values())],  # noqa: UP007 (made at run time)
        Field(discriminator="stage"),
    ]


class StageConfig(BaseModel):
    """Content of the file.

    `inputs` maps a role to an upstream artifact. The role of a stage's artifact is in its definition
    (`wrpo_engine.contract.builtin`): `prompts`, `sft-rows`, `sft`, `triples`, `model`, `evaluation`; `samples/<source>`
    and `scores/<source>` (the source is `target` for the target model; with several rewards
    `scores/<source>/<reward>`); `fetch/<name>` (a hub model downloaded beforehand: it is used for every model of that
    name and revision, and is not hashed); `inspect/<name>` (facts about a model, not hashed). A stage gets
    the roles it needs; report gets all that exist.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    contract_version: Literal[1] = 1
    experiment: str = Field(description="namespace/name, for logs and model cards only.")
    output: ArtifactRef
    inputs: dict[str, ArtifactRef] = Field(default_factory=dict)
    storage: Storage
    params: AnyParams
    runtime: Runtime = Runtime()

    def file_content(self) -> dict[str, Any]:
        """Return the content of the file, without parameters and runtime settings at their defaults.

        The stage then knows which values were set explicitly. A stage of an older image accepts a field that it does
        not know as long as the field has its default.
        """
        content = self.model_dump(mode="json", exclude_none=True, exclude={"params", "runtime"})
        params = self.params.model_dump(mode="json", exclude_defaults=True)
        content["params"] = {"stage": self.params.kind(), **params}
        content["runtime"] = self.runtime.model_dump(mode="json", exclude_defaults=True)
        return content
