"""JSON configuration of a stage.

`wrpo-engine STAGE --config FILE` reads one `StageConfig`. The operator builds it from the experiment, hashes `params`
(with the hashes of the inputs) into the artifact's address, and mounts the file from an immutable ConfigMap.
Settings that change the speed of a stage but not its result are in `runtime` and are not hashed.

Mount points belong to the pod and are given by its environment, not by this file:
`WRPO_VOLUME_ROOT` (mount point of the storage volume, default /var/lib/wrpo), `WRPO_TERMINATION_MESSAGE_PATH`
(default /dev/termination-log), `JOB_COMPLETION_INDEX` (shard), `PET_*` (torchrun), and for progress posts
`KUBEFLOW_TRAINER_SERVER_URL`, `KUBEFLOW_TRAINER_SERVER_TOKEN` (path of a token file),
`KUBEFLOW_TRAINER_SERVER_CA_CERT`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import BaseModel, ConfigDict, Field

from wrpo_engine.contract.base import StageParams
from wrpo_engine.contract.references import ArtifactRef
from wrpo_engine.contract.runtime import Runtime
from wrpo_engine.contract.stages import STAGES
from wrpo_engine.contract.storage import Storage

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
