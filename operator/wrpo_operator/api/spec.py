"""Fields of a WRPOExperiment's spec with their bounds, defaults and meaning.

Descriptions in the CRD and in docs/reference are these docstrings. Numbers such as alpha and learningRate are JSON
numbers, which are easy to write and to check by CEL. Each value is therefore a binary double: 0.1 is the nearest double
(written back as 0.1), and `kubectl` prints small values in exponent form (3e-07).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

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
from wrpo_operator.api.depth import MAX_DEPTH, too_deep
from wrpo_operator.api.evaluation import Evaluation
from wrpo_operator.api.fusion import Fusion
from wrpo_operator.api.lifecycle import Deadlines, Retries
from wrpo_operator.api.names import PLURAL
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

if TYPE_CHECKING:
    from wrpo_operator.api.pod_template import PodTemplatePolicy

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


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
"""A string of JSON, with its quotes."""
_SUBJECT = re.compile(r"^[A-Z][a-z]+ should ")


class SpecError(ValueError):
    """A spec that cannot be accepted; `errors` holds one sentence per fault."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


def parse_spec(raw: Mapping[str, Any], policy: PodTemplatePolicy | None = None) -> ExperimentSpec:
    """Parse a spec as the API server does: structure first, then the rules of `rules.py`, then protected fields.

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
        raise SpecError(structural_errors(error, raw)) from error
    errors = (*broken_rules(spec), *protected_field_errors(spec.pod_template, policy or STRICT))
    if errors:
        raise SpecError(errors)
    return spec


def structural_errors(error: Exception, raw: Any, plural: str = PLURAL) -> tuple[str, ...]:
    """Return one sentence for each fault that pydantic found in a spec; each begins with the field's path."""
    if not isinstance(error, ValidationError):
        return (f"spec is not a JSON object of the expected form: {error}",)
    return tuple(dict.fromkeys(_describe(details, raw, plural) for details in error.errors(include_url=False)))


def _path(details: Mapping[str, Any], raw: Any) -> str:
    """Return the user's path to a fault, without pydantic's names of union members."""
    path, now, parts = "spec", raw, details["loc"]
    for place, part in enumerate(parts):
        if isinstance(part, int) and isinstance(now, list) and part < len(now):
            path, now = f"{path}[{part}]", now[part]
        elif isinstance(now, Mapping) and (part in now or (details["type"] == "missing" and place == len(parts) - 1)):
            path, now = f"{path}.{part}", now.get(part)
    return path


def _mask_user_info(string: re.Match[str]) -> str:
    """Replace what a URL in a JSON string has before its host; linear, because a value can have a megabyte."""
    before, at, host = string[0].rpartition("@")
    scheme, colon, _ = before.partition(":")
    if not at or not colon:
        return string[0]
    return scheme[: 1 + max(map(scheme.rfind, ' "/'))] + "***@" + host


def _describe(details: Mapping[str, Any], raw: Any, plural: str) -> str:
    path = _path(details, raw)
    match details["type"]:
        case "missing":
            return f"{path} is missing. Set it; `kubectl explain {plural}.{path}` describes it."
        case "extra_forbidden":
            return f"{path} is not a known field. Check its spelling and place, or remove it."
        case _:
            # A malformed URL can hold a password, which must not reach status, events and logs.
            value = _STRING.sub(_mask_user_info, json.dumps(details["input"], default=str))
            shown = value if len(value) <= 80 else value[:77] + "..."
            return f"{path} is {shown}: {_rule(details['msg'])}."


def _rule(text: str) -> str:
    """Return the rule of a pydantic message, without pydantic's names of values and validation steps."""
    return _SUBJECT.sub("it must ", text.removeprefix("Value error, ")).replace(" after validation", "")
