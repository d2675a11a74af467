"""The contract between operator and engine: the JSON file every stage is started with. Imports no torch.

`wrpo-engine STAGE --config FILE` reads one `StageConfig`. The operator builds it from the experiment, hashes
`params` (with the hashes of the inputs) into the artifact's address, and mounts the file from an immutable ConfigMap.
What changes how fast a stage runs but not what it computes stands in `runtime` and is not hashed.

Where things are mounted is the pod's business and comes by environment, not by this file:
`WRPO_VOLUME_ROOT` (mount point of the storage volume, default /var/lib/wrpo), `WRPO_TERMINATION_MESSAGE_PATH`
(default /dev/termination-log), `JOB_COMPLETION_INDEX` (shard), `PET_*` (torchrun), and for progress posts
`KUBEFLOW_TRAINER_SERVER_URL`, `KUBEFLOW_TRAINER_SERVER_TOKEN` (path of a token file),
`KUBEFLOW_TRAINER_SERVER_CA_CERT`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

CONTRACT_VERSION = 1
"""Part of every stage hash: raising it makes every artifact anew."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageKind(StrEnum):
    """What a stage does; the engine's sub-command."""

    PREPARE = "prepare"
    SAMPLE = "sample"
    SCORE = "score"
    CURATE_SFT = "curate-sft"
    SFT = "sft"
    CURATE_TRIPLES = "curate-triples"
    TRAIN = "train"
    EVALUATE = "evaluate"
    REPORT = "report"


class Objective(StrEnum):
    """Loss of the preference stage (arXiv:2412.03187); SFTOnly stops after SFT."""

    WRPO_DPO = "WRPO-DPO"
    WRPO_SIMPO = "WRPO-SimPO"
    WRPO_IPO = "WRPO-IPO"
    DPO = "DPO"
    SIMPO = "SimPO"
    IPO = "IPO"
    SFT_ONLY = "SFTOnly"


class VolumeStorage(_Model):
    """A directory on a mounted volume. Its mount point comes from WRPO_VOLUME_ROOT."""

    kind: Literal["volume"] = "volume"
    path: str = Field(default="", description="Directory below the volume's root; empty is the root itself.")


class S3Storage(_Model):
    """A prefix in an S3 bucket; credentials come from the usual environment."""

    kind: Literal["s3"] = "s3"
    uri: str = Field(pattern=r"^s3://[^/]+(/.*)?$")
    endpoint: str | None = None
    region: str | None = None


Storage: TypeAlias = Annotated[VolumeStorage | S3Storage, Field(discriminator="kind")]


class ArtifactRef(_Model):
    """Address of an artifact: `<storage>/<stage>/<hash>/`, where stage is e.g. `sample/qwen`."""

    stage: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)?$")
    hash: str = Field(pattern=r"^[0-9a-f]{16}$")


class ModelRef(_Model):
    """A model: exactly one of `name` and `input`."""

    name: str | None = Field(
        default=None,
        description="Hugging Face hub id, absolute path, or storage://PATH for a directory below the storage root.",
    )
    input: str | None = Field(default=None, description="Key of `inputs`: the model made by an upstream stage.")
    revision: str | None = Field(default=None, description="Hub commit, tag or branch; unset is the default branch.")
    chat_template: str | None = Field(default=None, description="Jinja chat template that replaces the tokenizer's.")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelRef:
        if (self.name is None) == (self.input is None):
            raise ValueError("model needs exactly one of name and input")
        return self


class PrepareParams(_Model):
    """Read prompts, drop empty and duplicate ones (counted), split them. Prompt ids are sha256 of the prompt text."""

    stage: Literal["prepare"] = "prepare"
    dataset: str = Field(description="Hub id, absolute path or storage://PATH of a file or directory.")
    config: str | None = None
    split: str = "train"
    column: str = "prompt"
    limit: int | None = Field(default=None, ge=1)
    """Prompts used in all, held-out ones from the same data set included; chosen by the seed."""
    seed: int = 42
    sft_fraction: float = Field(default=1 / 3, ge=0, le=1)
    """Share of the training prompts for SFT; the rest are preference prompts. 0: none for SFT."""
    evaluation_prompts: int = Field(default=0, ge=0)
    """Held-out prompts, taken before the SFT split, from `evaluation_dataset` if set, else from `dataset`."""
    evaluation_dataset: str | None = None


class SampleParams(_Model):
    """Answer each prompt `samples_per_prompt` times. Seeds come from (seed, model, prompt id, sample index)."""

    stage: Literal["sample"] = "sample"
    model: ModelRef
    source: str = Field(description="Name of the source in the experiment, or `target`.")
    parts: tuple[Literal["sft", "preference", "evaluation"], ...] = ("sft", "preference")
    backend: Literal["vLLM", "Transformers"] = "vLLM"
    samples_per_prompt: int = Field(default=5, ge=1, le=1024)
    temperature: float = Field(default=0.8, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=2048, ge=1)
    seed: int = 42
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_length: int | None = Field(default=None, ge=1)
    system_prompt: str | None = None
    on_prompt_too_long: Literal["Fail", "Skip"] = "Fail"
    """Skip records the prompt with finish_reason `prompt_too_long` and counts it."""
    prompts_per_part: int = Field(default=32, ge=1)
    """Prompts committed together; a killed pod loses at most one part."""


class RewardModel(_Model):
    """A sequence-classification reward model."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False


class ScoreParams(_Model):
    """Score every response of one samples artifact."""

    stage: Literal["score"] = "score"
    reward: RewardModel
    max_length: int = Field(default=4096, ge=1)
    batch_tokens: int = Field(default=16384, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    rows_per_part: int = Field(default=4096, ge=1)


class CurateSftParams(_Model):
    """Choose y_ws, the best source response, for every SFT prompt."""

    stage: Literal["curate-sft"] = "curate-sft"
    drop_truncated: bool = False
    """Leave responses that hit max_tokens out of the choice."""


class CurateTriplesParams(_Model):
    """Choose (y_ws, y_wt, y_l) for every preference prompt."""

    stage: Literal["curate-triples"] = "curate-triples"
    drop_truncated: bool = False
    score_margin: float = Field(default=0.0, ge=0)
    """Drop a prompt whose score(y_wt) - score(y_l) is below this."""
    require_source_better: bool = False
    """Drop a prompt whose score(y_ws) does not exceed score(y_wt)."""
    on_tie: Literal["Drop", "KeepFirst"] = "Drop"
    """What follows when all of the target's responses to a prompt tie or are identical."""
    needs_source: bool = True
    """False for objectives without a source response (DPO, SimPO, IPO): y_ws is left out of the rows."""


class OptimizerParams(_Model):
    """AdamW and its schedule, as both training stages use it."""

    learning_rate: float = Field(gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    epochs: int = Field(default=1, ge=1)
    global_batch_size: int = Field(default=128, ge=1)
    """Rows (SFT) or triples (preference) of one optimizer step, over all ranks."""
    max_length: int = Field(default=2048, ge=2)
    """Tokens of prompt and response; each response is cut by itself."""
    max_prompt_length: int = Field(default=1800, ge=1)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    zero_stage: Literal[0, 1, 2, 3] = 3
    gradient_checkpointing: bool = False
    seed: int = 42


class SftParams(OptimizerParams):
    """Supervised fine-tuning of the target on (x, y_ws); loss on response tokens."""

    stage: Literal["sft"] = "sft"
    model: ModelRef
    learning_rate: float = Field(default=7e-6, gt=0)


class AlphaParams(_Model):
    """The weight of the source response: linear is a(step) = max * step / N (arXiv:2412.03187)."""

    schedule: Literal["Linear", "Constant"] = "Linear"
    max: float = Field(default=0.1, ge=0, le=1)


class TrainParams(OptimizerParams):
    """Preference optimisation from the SFT checkpoint, which is also the reference."""

    stage: Literal["train"] = "train"
    model: ModelRef
    objective: Objective = Objective.WRPO_DPO
    alpha: AlphaParams = AlphaParams()
    beta: float = Field(default=0.01, gt=0)
    gamma: float = Field(default=0.0, ge=0)
    """Target margin of the SimPO forms, in units of the reward (beta times the mean log-prob)."""
    tau: float = Field(default=0.1, gt=0)
    """Regularisation of the IPO forms."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    length_normalized: bool = False
    """DPO forms only: beta / |y| * r(y) per response."""
    ipo_mean: bool = False
    """IPO forms only: mean instead of summed log-ratios."""
    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of an added NLL term on y_ws (y_wt where there is no source)."""
    learning_rate: float = Field(default=3e-7, gt=0)


class EvaluateModel(_Model):
    """One model under evaluation; `label` is its name in tables: target, sft, or the objective's."""

    label: str
    model: ModelRef


class EvaluateParams(_Model):
    """Answer held-out prompts with each model, score them, count wins of the last model against the others."""

    stage: Literal["evaluate"] = "evaluate"
    models: tuple[EvaluateModel, ...] = Field(min_length=1)
    reward: RewardModel
    backend: Literal["vLLM", "Transformers"] = "vLLM"
    samples_per_prompt: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=2048, ge=1)
    seed: int = 42
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_length: int = Field(default=4096, ge=1)
    batch_tokens: int = Field(default=16384, ge=1)
    system_prompt: str | None = None


class ReportParams(_Model):
    """One self-contained HTML file from the manifests and metrics of all upstream stages."""

    stage: Literal["report"] = "report"
    title: str
    sample_answers: int = Field(default=5, ge=0)


StageParams: TypeAlias = Annotated[
    PrepareParams
    | SampleParams
    | ScoreParams
    | CurateSftParams
    | SftParams
    | CurateTriplesParams
    | TrainParams
    | EvaluateParams
    | ReportParams,
    Field(discriminator="stage"),
]


class Runtime(_Model):
    """How a stage is run; none of it changes what is computed, so none of it is hashed."""

    shards: int = Field(default=1, ge=1)
    """Pods that share a sampling or scoring stage; the shard is JOB_COMPLETION_INDEX."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Training: upper bound of tokens in one forward pass of one rank."""
    checkpoint_every_steps: int = Field(default=50, ge=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """vLLM; unset: vLLM's default on a GPU, 0.3 on a CPU."""
    offload: Literal["none", "optimizer", "optimizer-and-parameters"] = "none"


class StageConfig(_Model):
    """The whole file.

    `inputs` maps a role to an upstream artifact. Roles: `prompts` (prepare); `samples/<source>` and
    `scores/<source>` (sample, score; the source is `target` for the target model); `sft-rows` (curate-sft);
    `sft` (the SFT model); `triples` (curate-triples); `model` (train); `evaluation` (evaluate). A stage gets the roles
    it needs; report gets all that exist, plus `prompts`.
    """

    contract_version: Literal[1] = 1
    experiment: str = Field(description="namespace/name, for logs and model cards only.")
    output: ArtifactRef
    inputs: dict[str, ArtifactRef] = Field(default_factory=dict)
    storage: Storage
    params: StageParams
    runtime: Runtime = Runtime()


class ErrorInfo(_Model):
    """Why a stage failed, for people: part of the termination message."""

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
    error: ErrorInfo | None = None
    exit_code: int | None = Field(
        default=None, description="The stage's own exit code; torchrun ends with 1 whatever its ranks ended with."
    )


class ExitCode:
    """sysexits(3); 64..78 are never retried, 75 is temporary."""

    OK = 0
    USAGE = 64
    BAD_DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    SOFTWARE = 70
    CANNOT_CREATE = 73
    TEMPORARY = 75
    CONFIG = 78
    INTERRUPTED = 143
