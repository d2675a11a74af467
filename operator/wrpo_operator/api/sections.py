"""Sections of the spec about models, prompts, samples, scores and curation."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from wrpo_engine.contract.base import Role, automatic, overrides
from wrpo_engine.contract.data import (
    ChoiceFields,
    PinnedFields,
    PromptFields,
    RewardFields,
    ScoreExecution,
    ScoreFields,
    TemplateFields,
    TripleFields,
    VersionFields,
)
from wrpo_engine.contract.sampling import PartFields, ShardExecution, SourceExecution, SourceFields
from wrpo_engine.contract.storage import S3Fields, VolumeFields
from wrpo_engine.contract.types import ModelName
from wrpo_operator.api.base import LABEL_PATTERN, ObjectName, SpecModel, list_map
from wrpo_operator.api.names import MAX_REWARD_NAME, MAX_SOURCE_NAME
from wrpo_operator.api.pods import Resources, SecretKeyRef

RewardName: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=MAX_REWARD_NAME, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
]
Weight = Annotated[float, Field(gt=0, le=1000000)]


class PinnedModel(PinnedFields, SpecModel):
    """A model with its exact version."""

    model: Annotated[ModelName, Role.COMPUTED]
    """Hugging Face hub id, absolute path in the container, or storage://PATH for a directory below the storage root.
    The contents of a path are not inspected: a changed directory under the same path re-runs nothing."""


class Target(TemplateFields, PinnedModel):
    """The model that learns."""


@overrides("sampling", SourceFields, SourceExecution)
class SamplingOverride(SourceExecution, SourceFields, SpecModel):
    """Settings of one source. Every unset field takes the value of spec.sampling."""


@overrides("sampling", ShardExecution)
class SourceShards(ShardExecution, SpecModel):
    """Number of pods that share the sampling of a source."""


class Source(SourceShards, Target):
    """A source model: its responses are the training signal."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_NAME, pattern=LABEL_PATTERN), Role.COMPUTED]
    """Unique name: letters, digits and dashes. Part of the stage name (sample/NAME); renaming the source re-samples it.
    `target` is reserved for the target model."""
    sampling: SamplingOverride = SamplingOverride()
    """Settings in which this source differs from spec.sampling."""
    resources: Annotated[Resources | None, Role.EXECUTION] = None
    """Resources of this source's sampling pods. Unset: spec.resources.sample."""


class EvaluationPrompts(VersionFields, SpecModel, role=Role.COMPUTED):
    """Held-out prompts, which are excluded from training."""

    prompts: int = Field(default=200, ge=0, le=1000000)
    """Number of held-out prompts, taken before the SFT split. 0: none, then evaluation.enabled must be false."""
    dataset: ModelName | None = None
    """Data set of the held-out prompts: its split prompts.split, or the only split of a directory. Unset:
    prompts.dataset, which leaves that many fewer prompts for training."""


class Prompts(PromptFields, SpecModel):
    """Selection and split of the prompts."""

    dataset: ModelName  # narrower than the stage's own check, which names the place that a path leads to
    evaluation: EvaluationPrompts = EvaluationPrompts()
    """Held-out prompts."""


@automatic("shards", "tensor_parallel_size")
class Sampling(ShardExecution, SourceExecution, PartFields, SourceFields, SpecModel):
    """Generation of responses. Each prompt has its own seed, so shards and interruptions do not change results."""

    on_source_failure: Annotated[Literal["Fail", "Continue"], Role.OPERATION] = "Fail"
    """Reaction to the final failure of a source. Fail: the experiment fails. Continue: it continues without that source
    as long as one source remains, and the condition SourcesDegraded names it."""
    source_prompts: Annotated[Literal["All", "Needed"], Role.COMPUTED] = "All"
    """All: sources respond to SFT and preference prompts with every objective, so that experiments that differ only in
    objective share samples. Needed: only to those that the objective uses, which saves sampling for DPO, SimPO and
    IPO."""


class RewardSource(RewardFields, TemplateFields, PinnedFields, SpecModel):
    """Source of a reward: exactly one of model, function and endpoint."""

    endpoint: Annotated[str, Field(max_length=512, pattern=r"^https?://[A-Za-z0-9._:\[\]/-]+$")] | None = None
    # Narrower than the stage's own check, which refuses a password in the URL without showing it.
    model: Annotated[ModelName | None, Role.COMPUTED] = None
    """Hugging Face hub id, absolute path or storage://PATH of a sequence classifier with one label, or of a model with
    ArmoRM's multi-objective head."""


class RewardProvider(RewardSource):
    """A reward that chooses training data."""

    weight: Annotated[Weight, Role.COMPUTED] = 1.0
    """Share of this reward in the score, which is the weighted mean of all. Changing it re-scores no response."""


class AdditionalReward(RewardProvider):
    """A further reward, averaged with the first."""

    name: Annotated[RewardName, Role.COMPUTED]
    """Unique name, part of the stage name (score/SOURCE--NAME). `main` is reserved for the first reward."""


@automatic("batch_tokens", "shards")
class Reward(ShardExecution, ScoreExecution, ScoreFields, RewardProvider):
    """The reward that scores every response."""

    model_config = ConfigDict(
        alias_generator=lambda name: "concurrency" if name == "reward_concurrency" else to_camel(name)
    )

    api_key_secret_ref: Annotated[SecretKeyRef | None, Role.EXECUTION] = None
    """Key of a Secret that is sent to the endpoints as a bearer token. The operator never reads it."""
    additional: tuple[AdditionalReward, ...] = Field(default=(), max_length=3, json_schema_extra=list_map("name"))
    """Further rewards; each scores every response in separate stages."""


class ModelCache(SpecModel):
    """Cache of hub models in the storage."""

    enabled: Annotated[bool, Role.EXECUTION] = False
    """True: a separate stage downloads each hub model once (resumable, with checksums), and later stages need no hub.
    False: every pod downloads what it needs."""


class Curation(ChoiceFields, TripleFields, SpecModel):
    """Selection of training rows. Every dropped prompt is counted by reason."""


class VolumeClaim(SpecModel):
    """A PersistentVolumeClaim of the experiment's namespace."""

    claim_name: ObjectName
    """PersistentVolumeClaim in the experiment's namespace; ReadWriteMany when pods run on several nodes."""


class StorageVolume(VolumeFields, VolumeClaim):
    """A volume that all pods of the experiment mount."""


class StorageS3(S3Fields, SpecModel):
    """A prefix in an S3 bucket."""

    credentials_secret_name: ObjectName | None = None
    """Secret whose keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and others) become the pods' environment. The
    operator never reads it. Unset: the pods' own identity."""


ChosenStorage: TypeAlias = StorageS3 | StorageVolume
"""A kind of storage with its fields; `wrpo_operator.plan.storage` derives the settings of pods from it."""


class Storage(SpecModel):
    """Where artifacts are stored: exactly one of s3 and volume. Cannot be changed; create a new experiment instead."""

    s3: StorageS3 | None = None
    """A prefix in an S3 bucket."""
    volume: StorageVolume | None = None
    """A directory on a shared volume."""

    @property
    def chosen(self) -> ChosenStorage:
        """Return the kind of storage that is set; ValueError unless exactly one is."""
        present = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        if len(present) != 1:
            kinds = " and ".join(type(self).model_fields)
            raise ValueError(f"spec.storage must have exactly one of {kinds}; it has {', '.join(present) or 'none'}")
        chosen: ChosenStorage = next(iter(present.values()))
        return chosen
