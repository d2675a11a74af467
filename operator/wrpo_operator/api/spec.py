"""The spec of a WRPOExperiment: its fields, their bounds, defaults and meaning.

Descriptions in the CRD and in docs/reference are these docstrings. Numbers such as alpha and learningRate are JSON
numbers: pleasant to write and to check by CEL; the price is that a value is a binary double, so 0.1 is the nearest one
(written back as 0.1), and `kubectl` prints small ones in exponent form (3e-07).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from wrpo_engine.config import Objective
from wrpo_operator.api.backends import BackendName
from wrpo_operator.api.base import ATOMIC, FreeObject, SpecModel, list_map
from wrpo_operator.api.depth import MAX_DEPTH, too_deep
from wrpo_operator.api.lifecycle import Deadlines, Retries
from wrpo_operator.api.pods import (
    LABEL_KEY_PATTERN,
    EnvVar,
    Images,
    LocalObjectReference,
    Scheduling,
    StageResources,
)
from wrpo_operator.api.sections import (
    Backend,
    Curation,
    Dtype,
    ModelCache,
    Prompts,
    Reward,
    Sampling,
    Seed,
    Source,
    Storage,
    Target,
    Temperature,
    Text,
    Tokens,
    TopP,
)

if TYPE_CHECKING:
    from wrpo_operator.api.pod_template import PodTemplatePolicy

Steps = Annotated[int, Field(ge=1, le=1000000)]
Ratio = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "bfloat16"]
Zero = Literal[0, 1, 2, 3]
Offload = Literal["none", "optimizer", "optimizer-and-parameters"]
Nodes = Annotated[int, Field(ge=1, le=512)]
GpusPerNode = Annotated[int, Field(ge=0, le=64)]
MicroBatch = Annotated[int, Field(ge=1, le=16777216)]


class Lora(SpecModel):
    """Low-rank adapters. The trained model is exported merged, the adapter beside it."""

    rank: int = Field(default=16, ge=1, le=4096)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0, le=65536)
    """Their scale is alpha / rank."""
    target_modules: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = Field(
        default=(), max_length=32, json_schema_extra=ATOMIC
    )
    """Names of linear layers, e.g. q_proj. Empty: all but the output head."""


class Holdout(SpecModel):
    """Rows kept out of training, and what their loss decides."""

    fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the rows, chosen by the seed."""
    every_steps: Steps = 50
    """Optimizer steps between evaluations; the last step is always followed by one."""
    patience: int | None = Field(default=None, ge=1, le=10000)
    """Early stopping: end after so many evaluations without a better loss. Unset: never."""
    keep_best: bool = False
    """Export the weights with the lowest held-out loss instead of the last ones."""


class OptimizerSpec(SpecModel):
    """AdamW and its data, as SFT and preference training have them."""

    lr_scheduler_type: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: Ratio = 0.1
    """Share of the steps over which the learning rate rises to its peak."""
    weight_decay: Ratio = 0.0
    """AdamW's weight decay, of all weights but biases and norms."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000000)
    """Gradients are clipped to this norm."""
    epochs: int = Field(default=1, ge=1, le=1000)
    """Passes over the rows."""
    global_batch_size: int = Field(default=128, ge=1, le=1048576)
    """Rows (SFT) or triples (preference) of one optimizer step, over all pods. Independent of nodes and GPUs."""
    max_length: int = Field(default=2048, ge=2, le=1048576)
    """Tokens of prompt and response together; each response is cut by itself, and cuts are counted."""
    max_prompt_length: int = Field(default=1800, ge=1, le=1048576)
    """Tokens of the prompt; must be below maxLength."""
    seed: Seed = 42
    """Decides the order of rows."""
    shuffle: bool = True
    """False: rows in the order of the artifact, every epoch."""
    lora: Lora | None = None
    """Train low-rank adapters only. Unset: all weights."""
    holdout: Holdout | None = None
    """Evaluate on held-out rows while training. Unset: never."""


class Sft(OptimizerSpec):
    """Supervised fine-tuning of the target on the best source responses, before preference optimisation."""

    enabled: bool = True
    """False: preference optimisation starts from the target itself."""
    learning_rate: LearningRate = 7e-6
    """Peak learning rate."""
    precision: Precision | None = None
    """Unset: training.precision."""
    zero_stage: Zero | None = None
    """Unset: training.zeroStage."""
    gradient_checkpointing: bool | None = None
    """Unset: training.gradientCheckpointing."""
    offload: Offload | None = None
    """Unset: training.offload."""
    nodes: Nodes | None = None
    """Unset: training.nodes."""
    gpus_per_node: GpusPerNode | None = None
    """Unset: training.gpusPerNode."""
    micro_batch_tokens: MicroBatch | None = None
    """Unset: training.microBatchTokens."""
    checkpoint_every_steps: Steps | None = None
    """Unset: training.checkpointEverySteps."""
    loss_tokens: Literal["Response", "All"] = "Response"
    """All: the prompt's tokens carry loss too, as in the paper's released code."""


class Alpha(SpecModel):
    """The weight a of the source response (WRPO objectives only)."""

    schedule: Literal["Linear", "Constant"] = "Linear"
    """Linear: a(step) = max * step / N over the N optimizer steps. Constant: a = max."""
    max: Ratio = 0.1
    """Largest weight of the source response. 0 is DPO on the target's own pair, 1 leaves the target's best out."""


class Training(OptimizerSpec):
    """Preference optimisation (arXiv:2412.03187), and the hardware of both training stages."""

    objective: Objective = Objective.WRPO_DPO
    """Loss. SFTOnly stops after SFT."""
    alpha: Alpha = Alpha()
    """The weight of the source response."""
    beta: float = Field(default=0.01, gt=0, le=1000)
    """Strength of the reward; in the DPO forms, of the pull to the reference. Refused in the IPO forms unless 0.01."""
    gamma: float = Field(default=0.0, ge=0, le=1000)
    """Target margin of the SimPO forms, in units of the reward. Refused with other objectives unless 0."""
    tau: float = Field(default=0.1, gt=0, le=1000)
    """Regularisation of the IPO forms. Refused with other objectives unless 0.1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs taken as labelled the wrong way (DPO forms). Refused with other objectives unless 0."""
    length_normalized: bool = False
    """Divide each response's reward by its length (DPO forms). Refused with other objectives."""
    ipo_mean: bool = False
    """Mean instead of summed log-ratios (IPO forms). Refused with other objectives."""
    nll_weight: float = Field(default=0.0, ge=0, le=1000)
    """Weight of an added likelihood term on the best source response (the target's best where there is no source)."""
    learning_rate: LearningRate = 3e-7
    """Peak learning rate."""
    precision: Precision = "bfloat16"
    """Number format of forward and backward passes; master weights are float32. On CPUs float32 is faster."""
    zero_stage: Zero = 3
    """What DeepSpeed shards over the ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    offload: Offload = "none"
    """What lies in CPU memory instead of the GPU's. Changing it re-runs nothing."""
    micro_batch_tokens: MicroBatch = 8192
    """Upper bound of tokens in one forward pass of one rank. Lower it when memory runs out. Re-runs nothing."""
    checkpoint_every_steps: Steps = 50
    """Optimizer steps between checkpoints: what a killed gang loses at most. Re-runs nothing."""
    keep_checkpoints: int = Field(default=2, ge=1, le=100)
    """The newest so many checkpoints are kept, so that a damaged one costs little. Re-runs nothing."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=65536)
    """Rows in one forward pass of one rank, instead of the bound of tokens. Re-runs nothing."""
    layout: Literal["auto", "shared-prefix", "packed", "padded"] = "auto"
    """How sequences lie in a forward pass. shared-prefix computes a prompt once for all its responses; auto takes the
    best that the model's architecture supports. Re-runs nothing."""
    torch_compile: bool = False
    """Compile the model with torch.compile. Re-runs nothing."""
    reference: Literal["precomputed", "in-memory"] = "precomputed"
    """Reference log-probabilities from one pass before training, or from a second, frozen model in every step, which
    takes its memory and time. Re-runs nothing."""
    offload_nvme_path: str | None = Field(default=None, max_length=512, pattern=r"^/[A-Za-z0-9._/-]*$")
    """Offload to this directory of a local disk instead of the host's memory (zeroStage 3). Re-runs nothing."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",), max_length=3, json_schema_extra=ATOMIC
    )
    """Where metrics go beside metrics.jsonl. Keys come from spec.env. Re-runs nothing."""
    collective_timeout_seconds: int = Field(default=1800, ge=1, le=86400)
    """A rank that waits longer for its peers ends, and the gang is made anew. Re-runs nothing."""
    rendezvous_timeout_seconds: int = Field(default=900, ge=1, le=86400)
    """Pods of a gang wait so long for each other; then the missing ones are named. Re-runs nothing."""
    hang_timeout_seconds: int = Field(default=1200, ge=1, le=86400)
    """Without a finished micro-batch for so long, ranks write their stacks to their logs and end. Re-runs nothing."""
    nodes: Nodes = 1
    """Pods of a training gang. Changing it re-runs nothing."""
    gpus_per_node: GpusPerNode = 0
    """GPUs and ranks of each pod. 0: one rank on the CPU. Changing it re-runs nothing."""
    gpu_resource_name: str = Field(default="nvidia.com/gpu", max_length=316, pattern=LABEL_KEY_PATTERN)
    """Name of the resource that gpusPerNode counts, e.g. amd.com/gpu. Changing it re-runs nothing."""
    backend: BackendName = "PyTorchJob"
    """Kind of the training stages' children: PyTorchJob (Kubeflow's training operator), TrainJob (Kubeflow Trainer) or
    JobSet. Its CRD must be installed in the cluster. Changing it re-runs nothing."""


class Evaluation(SpecModel):
    """Answers of target, SFT model and trained model to held-out prompts, scored and compared."""

    enabled: bool = True
    """False: no evaluation; the report has no win rates."""
    backend: Backend | None = None
    """Engine that generates. Unset: sampling.backend."""
    samples_per_prompt: int = Field(default=1, ge=1, le=64)
    """Responses of each model to each held-out prompt."""
    temperature: Temperature = 0.0
    """0 is greedy."""
    top_p: TopP = 1.0
    """Nucleus: the share of probability that is sampled from; 1 is all."""
    max_tokens: Tokens = 2048
    """Longest response in tokens."""
    seed: Seed = 42
    """Start of all random numbers."""
    dtype: Dtype | None = None
    """Number format of the weights. Unset: sampling.dtype."""
    system_prompt: Text | None = None
    """System message in front of every prompt. Unset: sampling.systemPrompt."""


class Report(SpecModel):
    """One self-contained HTML file about the experiment."""

    enabled: bool = True
    """False: no report."""
    sample_answers: int = Field(default=5, ge=0, le=100)
    """Held-out prompts whose answers are shown side by side. 0: none."""


class Reuse(SpecModel):
    """Which artifacts may be used again."""

    salt: str = Field(default="", max_length=63, pattern=r"^[A-Za-z0-9._-]*$")
    """Part of every stage hash. Experiments with equal salts share the artifacts of equal stages in the same storage.
    Empty is a salt like any other; a new value computes everything anew."""


class ExperimentSpec(SpecModel):
    """What to run. Any field but storage may be edited at any time; only stages that depend on the edit run again."""

    target: Target
    """The model that learns."""
    sources: tuple[Source, ...] = Field(min_length=1, max_length=32, json_schema_extra=list_map("name"))
    """The models that teach, 1 to 32, with unique names."""
    prompts: Prompts
    """Which prompts are used, and for what."""
    sampling: Sampling = Sampling()
    """How models answer prompts."""
    reward: Reward
    """The reward."""
    model_cache: ModelCache = ModelCache()
    """Models of a hub, downloaded once."""
    curation: Curation = Curation()
    """Which prompts become training rows."""
    sft: Sft = Sft()
    """Supervised fine-tuning."""
    training: Training = Training()
    """Preference optimisation."""
    evaluation: Evaluation = Evaluation()
    """Comparison on held-out prompts."""
    report: Report = Report()
    """The HTML report."""
    storage: Storage
    """Where artifacts lie. Cannot be changed."""
    resources: StageResources = StageResources()
    """Resources by kind of stage."""
    scheduling: Scheduling = Scheduling()
    """Where and when pods run."""
    pod_template: FreeObject = Field(default={})
    """Strategic-merge patch on every pod template: metadata and spec; the stage's container is named `stage`. Fields
    that the operator needs (command, identity, its volumes, the restricted security context) are refused, and so is
    null."""
    images: Images = Images()
    """Container images."""
    retries: Retries = Retries()
    """What follows when a stage fails."""
    deadlines: Deadlines = Deadlines()
    """How long things may take."""
    suspend: bool = False
    """True stops all children and starts none; artifacts and checkpoints stay. False goes on where it stopped."""
    reuse: Reuse = Reuse()
    """Which artifacts may be used again."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=31536000)
    """Delete finished children (not the experiment, nor artifacts) this long after the end. Unset: never."""
    ttl_seconds_after_failed: int | None = Field(default=None, ge=0, le=31536000)
    """The same when the experiment has failed, e.g. longer, to keep pods and their logs. Unset: as
    ttlSecondsAfterFinished says."""
    env: tuple[EnvVar, ...] = Field(default=(), max_length=64, json_schema_extra=list_map("name"))
    """Environment of all stages, e.g. HF_TOKEN from a Secret. Changing it re-runs nothing."""
    image_pull_secrets: tuple[LocalObjectReference, ...] = Field(
        default=(), max_length=16, json_schema_extra=list_map("name")
    )
    """Secrets for pulling images."""


_SUBJECT = re.compile(r"^[A-Z][a-z]+ should ")


class SpecError(ValueError):
    """A spec that cannot be accepted; `errors` says why, one sentence each."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


def parse_spec(raw: Mapping[str, Any], policy: PodTemplatePolicy | None = None) -> ExperimentSpec:
    """Read a spec as the API server would: structure first, then the rules of `rules.py`, then protected fields.

    `policy` is the installation's; None is the strictest. Raises SpecError with all errors found at the first level
    that has any.
    """
    from wrpo_operator.api.pod_template import STRICT, protected_field_errors
    from wrpo_operator.api.rules import broken_rules

    deep = too_deep(raw, "spec")
    if deep:
        raise SpecError((f"{deep} nests deeper than {MAX_DEPTH} levels, which no pod needs. Remove it.",))
    try:
        spec = ExperimentSpec.model_validate_json(json.dumps(raw), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise SpecError(_structural_errors(error, raw)) from error
    errors = (*broken_rules(spec), *protected_field_errors(spec.pod_template, policy or STRICT))
    if errors:
        raise SpecError(errors)
    return spec


def _structural_errors(error: Exception, raw: Any) -> tuple[str, ...]:
    if not isinstance(error, ValidationError):
        return (f"spec is not a JSON object of the expected form: {error}",)
    return tuple(dict.fromkeys(_describe(details, raw) for details in error.errors(include_url=False)))


def _path(details: Mapping[str, Any], raw: Any) -> str:
    """Return the user's path to a fault: pydantic's own names of a union's members are not part of it."""
    path, now, parts = "spec", raw, details["loc"]
    for place, part in enumerate(parts):
        if isinstance(part, int) and isinstance(now, list) and part < len(now):
            path, now = f"{path}[{part}]", now[part]
        elif isinstance(now, Mapping) and (part in now or (details["type"] == "missing" and place == len(parts) - 1)):
            path, now = f"{path}.{part}", now.get(part)
    return path


def _describe(details: Mapping[str, Any], raw: Any) -> str:
    path = _path(details, raw)
    match details["type"]:
        case "missing":
            return f"{path} is missing. Set it; `kubectl explain wrpoexperiments.{path}` says what it means."
        case "extra_forbidden":
            return f"{path} is not a known field. Check its spelling and place, or remove it."
        case _:
            value = json.dumps(details["input"], default=str)
            shown = value if len(value) <= 80 else value[:77] + "..."
            return f"{path} is {shown}: {_rule(details['msg'])}."


def _rule(text: str) -> str:
    """Return what a value must be, without the names that pydantic gives to values and to the steps of its work."""
    return _SUBJECT.sub("it must ", text.removeprefix("Value error, ")).replace(" after validation", "")
