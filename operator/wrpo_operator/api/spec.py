"""Fields of a WRPOExperiment's spec with their bounds, defaults and meaning.

Descriptions in the CRD and in docs/reference are these docstrings. Numbers such as alpha and learningRate are JSON
numbers, which are easy to write and to check by CEL. Each value is therefore a binary double: 0.1 is the nearest double
(written back as 0.1), and `kubectl` prints small values in exponent form (3e-07).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wrpo_engine.config import ObjectiveFields
from wrpo_engine.contract.base import Role, automatic, overrides
from wrpo_engine.contract.data import ReportFields
from wrpo_engine.contract.training import (
    AlphaParams,
    BothExecution,
    HoldoutParams,
    LoraParams,
    OptimizerFields,
    PreferenceExecution,
    PreferenceFields,
    SftFields,
    SharedExecution,
    SharedFields,
)
from wrpo_operator.api.backends import BackendName
from wrpo_operator.api.base import FreeObject, SpecModel, list_map
from wrpo_operator.api.evaluation import Evaluation
from wrpo_operator.api.fusion import Fusion
from wrpo_operator.api.lifecycle import Deadlines, Retries
from wrpo_operator.api.pods import (
    LABEL_KEY_PATTERN,
    AcceleratorProfile,
    EnvVar,
    Images,
    LocalObjectReference,
    Scheduling,
    StageResources,
)
from wrpo_operator.api.sections import Curation, ModelCache, Prompts, Reward, Sampling, Source, Storage, Target

Nodes = Annotated[int, Field(ge=1, le=512)]
GpusPerNode = Annotated[int, Field(ge=0, le=64)]


class Lora(LoraParams, SpecModel):
    """Low-rank adapters. The export contains the merged model and, separately, the adapter."""


class Holdout(HoldoutParams, SpecModel):
    """Rows excluded from training, and the use of their loss."""


class OptimizerSpec(OptimizerFields, SpecModel):
    """AdamW and its data, for SFT and for preference training."""

    lora: Lora | None = None
    holdout: Holdout | None = None


@overrides("training", SharedFields, SharedExecution)
class SharedOverride(SharedExecution, SharedFields, SpecModel):
    """Settings in which SFT differs from preference optimisation."""


class Sft(SharedOverride, SftFields, OptimizerSpec):
    """Supervised fine-tuning of the target on the best source responses, before preference optimisation."""

    enabled: Annotated[bool, Role.COMPUTED] = True
    """False: preference optimisation starts from the unmodified target."""
    fusion: Fusion | None = None
    """Explicit fusion (FuseLLM): SFT also trains on the distributions of sources. Unset: on the responses alone."""
    nodes: Annotated[Nodes | None, Role.EXECUTION] = None
    """Unset: training.nodes."""
    gpus_per_node: Annotated[GpusPerNode | None, Role.EXECUTION] = None
    """Unset: training.gpusPerNode."""


class Alpha(AlphaParams, SpecModel):
    """The weight a of the source response (WRPO objectives only)."""


@automatic("gradient_checkpointing", "micro_batch_tokens", "offload")
class Training(
    PreferenceExecution,
    BothExecution,
    SharedExecution,
    SharedFields,
    PreferenceFields,
    ObjectiveFields,
    OptimizerSpec,
):
    """Preference optimisation (arXiv:2412.03187), and the hardware of both training stages."""

    alpha: Alpha = Alpha()
    nodes: Annotated[Nodes | None, Role.EXECUTION] = None
    """Pods of a training gang. Unset: automatic; 1 if gpusPerNode is set, or if nothing starts gangs as a whole."""
    gpus_per_node: Annotated[GpusPerNode | None, Role.EXECUTION] = None
    """GPUs and ranks of each pod. 0: one rank on the CPU. Unset: automatic."""
    gpu_resource_name: Annotated[
        Annotated[str, Field(max_length=316, pattern=LABEL_KEY_PATTERN)] | None, Role.EXECUTION
    ] = None
    """Name of the resource that gpusPerNode counts, e.g. amd.com/gpu. Unset: that of the automatic choice, and
    nvidia.com/gpu if gpusPerNode is set."""
    backend: Annotated[BackendName, Role.EXECUTION] = "PyTorchJob"
    """Kind of the training stages' children: PyTorchJob (Kubeflow's training operator), TrainJob (Kubeflow Trainer) or
    JobSet. Its CRD must be installed in the cluster."""


class Report(ReportFields, SpecModel):
    """One self-contained HTML file about the experiment."""

    enabled: Annotated[bool, Role.OPERATION] = True
    """False: no report."""


class Reuse(SpecModel):
    """Control over which artifacts may be reused."""

    salt: Annotated[str, Role.COMPUTED] = Field(default="", max_length=63, pattern=r"^[A-Za-z0-9._-]*$")
    """Part of every stage hash. Experiments with equal salts share the artifacts of equal stages in the same storage.
    Empty is a valid salt. A new value recomputes everything."""


class ExperimentSpec(SpecModel):
    """Desired experiment. All fields but storage may be edited at any time; an edit re-runs only dependent stages."""

    target: Target
    """The model that learns."""
    sources: tuple[Source, ...] = Field(min_length=1, max_length=32, json_schema_extra=list_map("name"))
    """The source models, 1 to 32, with unique names."""
    prompts: Prompts
    """Selection and split of the prompts."""
    sampling: Sampling = Sampling()
    """Generation of responses."""
    reward: Reward
    """The reward that scores responses."""
    model_cache: ModelCache = ModelCache()
    """Cache for models of a hub."""
    curation: Curation = Curation()
    """Selection of training rows."""
    sft: Sft = Sft()
    """Supervised fine-tuning."""
    training: Training = Training()
    """Preference optimisation."""
    evaluation: Evaluation = Evaluation()
    """Comparison on held-out prompts and benchmarks."""
    report: Report = Report()
    """The HTML report."""
    storage: Annotated[Storage, Role.OPERATION]
    """Where artifacts are stored. Cannot be changed."""
    resources: Annotated[StageResources, Role.OPERATION] = StageResources()
    """Resources by kind of stage."""
    accelerator: Annotated[AcceleratorProfile | None, Role.OPERATION] = None
    """Accelerators to which stages without resources are sized. Unset: those of the queue, the nodes, or the operator's
    settings."""
    scheduling: Annotated[Scheduling, Role.OPERATION] = Scheduling()
    """Placement and admission of pods."""
    pod_template: Annotated[FreeObject, Role.OPERATION] = Field(default={})
    """Strategic-merge patch on every pod template: metadata and spec; the stage's container is named `stage`. Fields
    that the operator needs (command, identity, its volumes, the restricted security context) are refused, and so is
    null."""
    images: Annotated[Images, Role.OPERATION] = Images()
    """Container images."""
    retries: Annotated[Retries, Role.OPERATION] = Retries()
    """Retries of failed stages."""
    deadlines: Annotated[Deadlines, Role.OPERATION] = Deadlines()
    """Time limits of attempts."""
    suspend: Annotated[bool, Role.OPERATION] = False
    """True: stop all children and start none; artifacts and checkpoints are kept. False: resume from them."""
    reuse: Reuse = Reuse()
    """Reuse of artifacts."""
    ttl_seconds_after_finished: Annotated[int | None, Role.OPERATION] = Field(default=None, ge=0, le=31536000)
    """Delete finished children (not the experiment, nor artifacts) this long after the end. Unset: never."""
    ttl_seconds_after_failed: Annotated[int | None, Role.OPERATION] = Field(default=None, ge=0, le=31536000)
    """The same for a failed experiment, e.g. longer, to keep pods and their logs. Unset: the value of
    ttlSecondsAfterFinished."""
    env: Annotated[tuple[EnvVar, ...], Role.EXECUTION] = Field(
        default=(), max_length=64, json_schema_extra=list_map("name")
    )
    """Environment variables of all stages, e.g. HF_TOKEN from a Secret."""
    image_pull_secrets: Annotated[tuple[LocalObjectReference, ...], Role.OPERATION] = Field(
        default=(), max_length=16, json_schema_extra=list_map("name")
    )
    """Secrets for pulling images."""
