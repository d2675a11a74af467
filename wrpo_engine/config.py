"""The contract between operator and engine: what the JSON file of a stage holds. Imports no torch.

`wrpo-engine STAGE --config FILE` reads one `StageConfig` (see `wrpo_engine.contract.stage_config`). The operator builds
it from the experiment, hashes `params` (with the hashes of the inputs) into the artifact's address, and mounts the file
from an immutable ConfigMap.
What changes how fast a stage runs but not what it computes stands in `runtime` and is not hashed.

Where things are mounted is the pod's business and comes by environment, not by this file:
`WRPO_VOLUME_ROOT` (mount point of the storage volume, default /var/lib/wrpo), `WRPO_TERMINATION_MESSAGE_PATH`
(default /dev/termination-log), `JOB_COMPLETION_INDEX` (shard), `PET_*` (torchrun), and for progress posts
`KUBEFLOW_TRAINER_SERVER_URL`, `KUBEFLOW_TRAINER_SERVER_TOKEN` (path of a token file),
`KUBEFLOW_TRAINER_SERVER_CA_CERT`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from wrpo_engine.contract.exit_codes import ExitCode as ExitCode  # noqa: PLC0414 - part of the contract
from wrpo_engine.contract.objectives import Objective as Objective  # noqa: PLC0414 - re-exported beside its parameters
from wrpo_engine.contract.storage import S3Storage as S3Storage  # noqa: PLC0414
from wrpo_engine.contract.storage import Storage as Storage  # noqa: PLC0414
from wrpo_engine.contract.storage import VolumeStorage as VolumeStorage  # noqa: PLC0414

CONTRACT_VERSION = 1
"""Part of every stage hash: raising it makes every artifact anew.

Parameters that have their default are not hashed, so a new optional field re-runs nothing. In return no default may
change within a contract version.
"""
REWARD_DIVERGENCE = "reward_divergence"
"""Metric of preference training, in progress posts and in the outcome: 1 from the step on at which it has diverged."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageParams(_Model):
    """Parameters of one kind of stage. A subclass names the kind: `stage: Literal["KIND"] = "KIND"`."""

    @classmethod
    def kind(cls) -> str:
        """Return the kind: the engine's sub-command and the first part of the artifact's address."""
        return str(cls.model_fields["stage"].default)


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


class PrepareParams(StageParams):
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


class FetchParams(StageParams):
    """Download a model into the storage's model cache: resumable, its revision pinned, its files with checksums."""

    stage: Literal["fetch"] = "fetch"
    model: ModelRef


class SampleParams(StageParams):
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
    """Prompts committed together; a killed pod loses the parts in flight."""
    quantization: str | None = None
    """vLLM's name of the weights' quantisation; unset: what the model's config says."""
    stop: tuple[str, ...] = ()
    """Texts that end a response; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a response, beside the model's own end-of-turn tokens."""
    engine_args: dict[str, JsonValue] = Field(default_factory=dict)
    """Further arguments of vLLM's engine by their Python names, checked against vLLM's own list. Those that change only
    speed and memory stand in the runtime, see SPEED_ENGINE_ARGS."""


class RewardModel(_Model):
    """Where rewards come from: a model `name`, a Python `function` or an HTTP `endpoint`, exactly one of them."""

    name: str | None = None
    """A sequence classifier with one label, or a model with ArmoRM's multi-objective gated head."""
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    """Jinja chat template in place of the tokenizer's."""
    function: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """module:function in the stage's image: (prompts: list[str], responses: list[str]) -> list[float]."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Base URL of an OpenAI-compatible server with a reward model, e.g. vLLM's: POST {endpoint}/pooling. A key comes
    from WRPO_REWARD_API_KEY."""
    endpoint_model: str | None = None
    """Model name that is sent to the endpoint."""

    @model_validator(mode="after")
    def _exactly_one(self) -> RewardModel:
        if sum(value is not None for value in (self.name, self.function, self.endpoint)) != 1:
            raise ValueError("reward needs exactly one of name, function and endpoint")
        return self

    @property
    def identity(self) -> str:
        """For logs and tables."""
        return self.name or self.function or self.endpoint or ""


class ScoreParams(StageParams):
    """Score every response of one samples artifact with one reward."""

    stage: Literal["score"] = "score"
    reward: RewardModel
    max_length: int = Field(default=4096, ge=1)
    truncation: Literal["Right", "Left", "Fail"] = "Right"
    """What becomes of a prompt with response longer than max_length: cut at its end, at its beginning (the response is
    kept), or an error that names the row. Cut ones are counted."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    rows_per_part: int = Field(default=4096, ge=1)


class _CurateParams(StageParams):
    """What both curations share."""

    drop_truncated: bool = False
    """Leave responses that hit max_tokens out of the choice."""
    max_response_tokens: int | None = Field(default=None, ge=1)
    """Leave longer responses (in the tokens of the model that gave them) out of the choice."""
    reward_weights: dict[str, float] = Field(default_factory=dict)
    """Reward name -> weight: the score is the weighted mean over them. Empty: one reward, roles without a name."""
    score_column: str | None = None
    """Take this column of the scores (an objective of a multi-objective reward model) in place of `score`."""


class CurateSftParams(_CurateParams):
    """Choose y_ws, the best source response, for every SFT prompt."""

    stage: Literal["curate-sft"] = "curate-sft"


class CurateTriplesParams(_CurateParams):
    """Choose (y_ws, y_wt, y_l) for every preference prompt."""

    stage: Literal["curate-triples"] = "curate-triples"
    pairing: Literal["WRPO", "WithinSource", "BestWorst"] = "WRPO"
    """WRPO: y_ws over all sources, y_wt and y_l of the target. WithinSource: chosen and rejected both of the one source
    whose best response is the best of all (FuseChat-3.0). BestWorst: the best against the worst of all models. The last
    two give pairs, for DPO, SimPO and IPO: chosen in the column of y_wt, rejected in that of y_l, no y_ws."""
    score_margin: float = Field(default=0.0, ge=0)
    """Drop a prompt whose score(y_wt) - score(y_l) is below this."""
    max_score_gap: float | None = Field(default=None, gt=0)
    """Drop a prompt whose score(y_wt) - score(y_l) is above this."""
    drop_duplicates: bool = True
    """Drop a prompt whose whole row (prompt text and responses) equals an earlier one's."""
    require_source_better: bool = False
    """Drop a prompt whose score(y_ws) does not exceed score(y_wt)."""
    on_tie: Literal["Drop", "KeepFirst"] = "Drop"
    """What follows when all of the target's responses to a prompt tie or are identical."""
    needs_source: bool = True
    """False for objectives without a source response (DPO, SimPO, IPO): y_ws is left out of the rows."""


class LoraParams(_Model):
    """Low-rank adapters (PEFT). The export is the merged model; the adapter lies beside it."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    target_modules: tuple[str, ...] = ()
    """Names of linear layers; empty: all of them but the head."""


class HoldoutParams(_Model):
    """Rows kept out of training, chosen by the seed, and what their loss decides."""

    fraction: float = Field(default=0.05, gt=0, lt=1)
    every_steps: int = Field(default=50, ge=1)
    """Optimizer steps between evaluations; the last step is always followed by one."""
    patience: int | None = Field(default=None, ge=1)
    """Early stopping: end after so many evaluations without a better loss. Unset: never."""
    keep_best: bool = False
    """Export the checkpoint with the lowest held-out loss instead of the last step's weights."""


class OptimizerParams(StageParams):
    """AdamW and its schedule, as both training stages use it."""

    learning_rate: float = Field(gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's, of all weights but biases and norms."""
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
    shuffle: bool = True
    """False: rows in the order in which they are given, every epoch."""
    lora: LoraParams | None = None
    """Train low-rank adapters only; unset: all weights."""
    holdout: HoldoutParams | None = None
    """Evaluate on held-out rows during training; unset: never."""


class SftParams(OptimizerParams):
    """Supervised fine-tuning of the target on (x, y_ws); loss on response tokens."""

    stage: Literal["sft"] = "sft"
    model: ModelRef
    learning_rate: float = Field(default=7e-6, gt=0)
    loss_tokens: Literal["Response", "All"] = "Response"
    """All: the prompt's tokens carry loss too, as in the released code."""


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
    tokenized_triples: str | None = None
    """Train on these token ids instead of the role `triples`: path or storage://PATH of a Parquet file, a directory of
    them, or a saved `datasets` directory, with integer lists prompt_ids, source_chosen_ids, target_chosen_ids and
    rejected_ids. They are taken as they are: no template, nothing added, nothing cut."""


class EvaluateModel(_Model):
    """One model under evaluation; `label` is its name in tables: target, sft, or the objective's."""

    label: str
    model: ModelRef


class EvaluateParams(StageParams):
    """Answer held-out prompts with each model, score them, count wins of the last model against the others."""

    stage: Literal["evaluate"] = "evaluate"
    models: tuple[EvaluateModel, ...] = Field(min_length=1)
    reward: RewardModel
    more_rewards: tuple[RewardModel, ...] = ()
    """Further rewards; the score is the weighted mean over all, in the order of `reward_weights`."""
    reward_weights: tuple[float, ...] = ()
    """One for `reward` and one for each of `more_rewards`; empty: all equal."""
    backend: Literal["vLLM", "Transformers"] = "vLLM"
    samples_per_prompt: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=2048, ge=1)
    seed: int = 42
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_length: int = Field(default=4096, ge=1)
    system_prompt: str | None = None


class ReportParams(StageParams):
    """One self-contained HTML file from the manifests and metrics of all upstream stages."""

    stage: Literal["report"] = "report"
    title: str
    sample_answers: int = Field(default=5, ge=0)


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
"""Arguments of vLLM's engine that decide how fast it answers and how much memory it takes, not what it answers (up to
the rounding that another batch or another number of devices brings): changing them runs nothing again."""


class Runtime(_Model):
    """How a stage is run; none of it changes what is computed, so none of it is hashed."""

    shards: int = Field(default=1, ge=1)
    """Pods that share a sampling or scoring stage; the shard is JOB_COMPLETION_INDEX."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Training: upper bound of tokens in one forward pass of one rank."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Training: fixed number of rows in one forward pass of one rank, instead of the bound of tokens."""
    layout: Literal["auto", "shared-prefix", "packed", "padded"] = "auto"
    """Training: how sequences lie in a forward pass. shared-prefix computes the prompt once for all its responses; auto
    takes the best that the model's architecture supports and says which."""
    torch_compile: bool = False
    reference: Literal["precomputed", "in-memory"] = "precomputed"
    """Reference log-probabilities from one pass before training, or from a second, frozen model in every step."""
    prefetch_batches: int = Field(default=2, ge=0)
    """Training: micro-batches that are collated ahead by another thread."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Training: the newest so many are kept, and the best one if holdout.keep_best is set."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Training: where metrics go beside metrics.jsonl."""
    collective_timeout_seconds: int = Field(default=1800, ge=1)
    """Training: a rank that waits longer for its peers ends with exit code 75."""
    rendezvous_timeout_seconds: int = Field(default=900, ge=1)
    """Training: nodes wait so long for each other at the start; then the missing ones are named, exit code 75."""
    hang_timeout_seconds: int = Field(default=1200, ge=1)
    """Training: without a finished micro-batch for so long, every rank logs its stacks and ends with 75."""
    peak_flops: float | None = Field(default=None, gt=0)
    """Training: floating-point operations per second of one device, for MFU; unset: known GPUs' own."""
    checkpoint_every_steps: int = Field(default=50, ge=1)
    batch_tokens: int = Field(default=16384, ge=1)
    """Scoring, and the rewards of evaluation: upper bound of tokens in one forward pass of the reward model."""
    reward_concurrency: int = Field(default=16, ge=1)
    """Scoring by an endpoint: requests that are under way at the same time."""
    engine_args: dict[str, JsonValue] = Field(default_factory=dict)
    """Sampling: arguments of vLLM's engine that change only its speed and memory, see SPEED_ENGINE_ARGS."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """vLLM; unset: vLLM's default on a GPU, 0.3 on a CPU."""
    offload: Literal["none", "optimizer", "optimizer-and-parameters"] = "none"
    offload_nvme_path: str | None = None
    """Offload to this directory of a local NVMe disk instead of the host's memory (ZeRO stage 3 only)."""


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
