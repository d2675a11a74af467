"""The contract between operator and engine: the content of a stage's JSON file. Imports no torch.

`wrpo-engine STAGE --config FILE` reads one `StageConfig` (see `wrpo_engine.contract.stage_config`). The operator builds
it from the experiment, hashes `params` (with the hashes of the inputs) into the artifact's address, and mounts the file
from an immutable ConfigMap.
Settings that change the speed of a stage but not its result are in `runtime` and are not hashed.

Mount points belong to the pod and are given by its environment, not by this file:
`WRPO_VOLUME_ROOT` (mount point of the storage volume, default /var/lib/wrpo), `WRPO_TERMINATION_MESSAGE_PATH`
(default /dev/termination-log), `JOB_COMPLETION_INDEX` (shard), `PET_*` (torchrun), and for progress posts
`KUBEFLOW_TRAINER_SERVER_URL`, `KUBEFLOW_TRAINER_SERVER_TOKEN` (path of a token file),
`KUBEFLOW_TRAINER_SERVER_CA_CERT`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from wrpo_engine.contract.base import Declared, Role
from wrpo_engine.contract.benchmarks import JudgeExecution
from wrpo_engine.contract.data import (
    ChoiceFields,
    ModelUse,
    PinnedFields,
    PromptFields,
    ReportFields,
    RewardFields,
    RowRules,
    ScoreExecution,
    ScoreFields,
    TemplateFields,
)
from wrpo_engine.contract.exit_codes import ExitCode as ExitCode  # noqa: PLC0414 - part of the contract
from wrpo_engine.contract.fusion import FusionLoss
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.contract.objectives import Objective as Objective  # noqa: PLC0414 - re-exported with its parameters
from wrpo_engine.contract.sampling import (
    PartFields,
    ShardExecution,
    SourceExecution,
    SourceFields,
)
from wrpo_engine.contract.storage import S3Storage as S3Storage  # noqa: PLC0414
from wrpo_engine.contract.storage import Storage as Storage  # noqa: PLC0414
from wrpo_engine.contract.storage import VolumeStorage as VolumeStorage  # noqa: PLC0414
from wrpo_engine.contract.training import AlphaParams as AlphaParams  # noqa: PLC0414 (imported from here)
from wrpo_engine.contract.training import (
    BothExecution,
    OptimizerFields,
    PreferenceExecution,
    PreferenceFields,
    SftFields,
    SharedExecution,
    SharedFields,
)
from wrpo_engine.contract.training import HoldoutParams as HoldoutParams  # noqa: PLC0414
from wrpo_engine.contract.training import LoraParams as LoraParams  # noqa: PLC0414
from wrpo_engine.contract.types import LearningRate, Tokens

CONTRACT_VERSION = 1
"""Part of every stage hash: bumping it invalidates all artifacts.

Parameters that have their default are not hashed, so a new optional field re-runs nothing. In return no default may
change within a contract version.
"""
REWARD_DIVERGENCE = "reward_divergence"
"""Metric of preference training, in progress posts and in the outcome: 1 from the step on at which it has diverged."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageParams(Declared):
    """Parameters of one kind of stage. A subclass names the kind: `stage: Literal["KIND"] = "KIND"`."""

    @classmethod
    def kind(cls) -> str:
        """Return the kind: the engine's sub-command and the first part of the artifact's address."""
        return str(cls.model_fields["stage"].default)


class ArtifactRef(_Model):
    """Address of an artifact: `<storage>/<stage>/<hash>/`, where stage is e.g. `sample/qwen`."""

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


class PrepareParams(PromptFields, StageParams, role=Role.COMPUTED):
    """Read prompts, drop empty and duplicate ones (counted), split them. Prompt ids are sha256 of the prompt text."""

    stage: Literal["prepare"] = "prepare"
    evaluation_prompts: int = Field(default=0, ge=0)
    """Held-out prompts, taken before the SFT split, from `evaluation_dataset` if set, else from `dataset`."""
    evaluation_dataset: str | None = None


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


class ReportParams(ReportFields, StageParams, role=Role.COMPUTED):
    """One self-contained HTML file from the manifests and metrics of all upstream stages."""

    stage: Literal["report"] = "report"
    title: str


SPEED_ENGINE_ARGS = frozenset(
    {
        "async_scheduling",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "data_parallel_size",
        "disable_custom_all_reduce",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_expert_parallel",
        "enable_prefix_caching",
        "enforce_eager",
        "kv_cache_memory_bytes",
        "long_prefill_token_threshold",
        "max_cudagraph_capture_size",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "pipeline_parallel_size",
        "scheduling_policy",
    }
)
"""Arguments of vLLM's engine that affect speed and memory, not the responses. Changing them re-runs no stage. The
responses still differ by the rounding that another batch or another number of devices brings."""


class Runtime(
    ShardExecution,
    SharedExecution,
    BothExecution,
    PreferenceExecution,
    ScoreExecution,
    SourceExecution,
    JudgeExecution,
    role=Role.EXECUTION,
):
    """How a stage is run; none of it changes what is computed, so none of it is hashed.

    The shard of a pod is JOB_COMPLETION_INDEX. A collective, rendezvous or hang timeout ends a rank with exit code 75.
    """

    prefetch_batches: int = Field(default=2, ge=0)
    """Training: micro-batches that are collated ahead by another thread."""
    overlap_communication: bool = False
    """Training: reduce gradients at zeroStage 3 on a separate stream; same results. Not measured yet."""
    peak_flops: float | None = Field(default=None, gt=0)
    """Training: floating-point operations per second of one device, for MFU; unset: known GPUs' own."""
    engine_args: dict[str, JsonValue] = Field(default_factory=dict)
    """Sampling: arguments of vLLM's engine that change only its speed and memory, see SPEED_ENGINE_ARGS. Evaluation:
    all that sampling has."""
    context_limit: Tokens | None = None
    """Evaluation: sampling.maxModelLength, the limit of prompt and response in tokens. Unset: each model's limit. This
    and the arguments are not hashed, because the training data of the evaluated models were sampled with them."""
    model_uses: tuple[ModelUse, ...] = ()
    """Fetching: uses of the model. A model that cannot serve one of them is refused."""
    model_sections: dict[str, str] = Field(default_factory=dict)
    """Evaluation: section of the experiment's spec that names a model, a reward or a judge, by the parameter: e.g.
    evaluation.systems[big].model by model or members[0], evaluation.judges[gpt4] by the model of a judge stage. Errors
    name it."""


class ErrorInfo(_Model):
    """Cause of a stage's failure, for users: part of the termination message."""

    code: str = Field(description="CamelCase reason, e.g. ModelNotFound.")
    field: str | None = Field(default=None, description="Field of the experiment's spec, e.g. prompts.column.")
    message: str
    hint: str | None = None


class TerminationMessage(_Model):
    """JSON that a stage leaves in its termination message file, at most 4096 bytes."""

    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    cached: bool = False
    rows: int | None = None
    step: int | None = Field(default=None, description="Optimizer steps completed when a training stage ended.")
    metrics: dict[str, float] = Field(default_factory=dict)
    artifact: str | None = Field(default=None, description="<stage>/<hash> below the storage root.")
    digest: str | None = Field(default=None, description="sha256 of the artifact's manifest.json.")
    facts: ModelFacts | None = Field(default=None, description="The model that an inspect or fetch stage has read.")
    error: ErrorInfo | None = None
    exit_code: int | None = Field(
        default=None, description="The stage's own exit code; torchrun exits with 1 regardless of its ranks."
    )
