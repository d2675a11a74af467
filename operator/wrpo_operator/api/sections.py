"""The spec's sections about models, prompts, samples, scores and curation."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from wrpo_engine.contract.storage import S3Fields, VolumeFields
from wrpo_operator.api.base import (
    ATOMIC,
    LABEL_PATTERN,
    MAX_SEED,
    FreeObject,
    ModelName,
    ObjectName,
    Revision,
    SpecModel,
    list_map,
)
from wrpo_operator.api.names import MAX_REWARD_NAME, MAX_SOURCE_NAME
from wrpo_operator.api.pods import Resources, SecretKeyRef

Backend = Literal["vLLM", "Transformers"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
OnPromptTooLong = Literal["Fail", "Skip"]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Text = Annotated[str, Field(min_length=1, max_length=65536)]
Samples = Annotated[int, Field(ge=1, le=1024)]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(gt=0, le=1)]
Tokens = Annotated[int, Field(ge=1, le=1048576)]
Shards = Annotated[int, Field(ge=1, le=256)]
TensorParallel = Annotated[int, Field(ge=1, le=64)]
MemoryFraction = Annotated[float, Field(gt=0, le=1)]
Quantization = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
StopTexts = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=16)]
StopTokens = Annotated[tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...], Field(max_length=32)]
Weight = Annotated[float, Field(gt=0, le=1000000)]


class PinnedModel(SpecModel):
    """A model and the exact version of it."""

    model: ModelName
    """Hugging Face hub id, absolute path in the container, or storage://PATH for a directory below the storage root.
    The contents of a path are not looked at: a changed directory under the same path re-runs nothing."""
    revision: Revision | None = None
    """Commit, tag or branch of a hub id. Unset: the default branch as it is when a stage runs. Refused for paths."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. A hub id then needs a 40-digit commit as its revision, so that nobody
    can change the code later."""


class Target(PinnedModel):
    """The model that learns."""

    chat_template: Text | None = None
    """Jinja chat template that replaces the tokenizer's. Unset: the tokenizer's own; a model without one needs this."""


class SamplingOverride(SpecModel):
    """What one source does differently. Every unset field takes the value of spec.sampling."""

    backend: Backend | None = None
    """Engine that generates."""
    samples_per_prompt: Samples | None = None
    """Responses to each prompt."""
    temperature: Temperature | None = None
    """0 is greedy."""
    top_p: TopP | None = None
    """Nucleus: the share of probability that is sampled from; 1 is all."""
    max_tokens: Tokens | None = None
    """Longest response in tokens; a response that reaches it counts as truncated."""
    seed: Seed | None = None
    """Start of all random numbers of this source."""
    dtype: Dtype | None = None
    """Number format of the weights."""
    max_model_length: Tokens | None = None
    """Tokens of prompt and response together."""
    system_prompt: Text | None = None
    """System message in front of every prompt."""
    on_prompt_too_long: OnPromptTooLong | None = None
    """What follows when a prompt does not fit the model's context."""
    tensor_parallel_size: TensorParallel | None = None
    """GPUs that share one copy of the model."""
    gpu_memory_utilization: MemoryFraction | None = None
    """Share of a GPU's memory that vLLM takes."""
    quantization: Quantization | None = None
    """vLLM's name of the weights' quantisation."""
    stop: StopTexts | None = Field(default=None, json_schema_extra=ATOMIC)
    """Texts that end a response."""
    stop_token_ids: StopTokens | None = Field(default=None, json_schema_extra=ATOMIC)
    """Tokens that end a response."""
    engine_args: FreeObject | None = None
    """Further arguments of vLLM's engine."""


class Source(Target):
    """A model that teaches by its responses."""

    name: str = Field(min_length=1, max_length=MAX_SOURCE_NAME, pattern=LABEL_PATTERN)
    """Unique name: letters, digits and dashes. It stands in stage names (sample/NAME), so renaming a source samples it
    anew. `target` is reserved for the target model."""
    sampling: SamplingOverride = SamplingOverride()
    """What this source does differently from spec.sampling."""
    shards: Shards | None = None
    """Pods that share this source's prompts. Unset: spec.sampling.shards. Changing it re-runs nothing."""
    resources: Resources | None = None
    """Resources of this source's sampling pods. Unset: spec.resources.sample. Changing it re-runs nothing."""


class EvaluationPrompts(SpecModel):
    """Held-out prompts: never trained on."""

    prompts: int = Field(default=200, ge=0, le=1000000)
    """Number of held-out prompts, taken before the SFT split. 0: none, then evaluation.enabled must be false."""
    dataset: ModelName | None = None
    """Where they come from: prompts.split of it, or the only split of a directory. Unset: from prompts.dataset, so that
    many fewer prompts are trained on."""


class Prompts(SpecModel):
    """Which prompts are used, and for what."""

    dataset: ModelName
    """Hugging Face data set id, absolute path, or storage://PATH of a file or directory (JSON lines, Parquet, CSV)."""
    config: str | None = Field(default=None, min_length=1, max_length=128)
    """Configuration of a hub data set, or of a directory's dataset card. Unset: its only one."""
    split: str = Field(default="train", min_length=1, max_length=128)
    """Split of the data set; of a directory by its files' names (test-*, train/), as `datasets` reads it. One that does
    not exist is refused."""
    column: str = Field(default="prompt", min_length=1, max_length=128)
    """Column that holds the prompt's text, or a list of chat messages of which the first user message is taken."""
    limit: int | None = Field(default=None, ge=1, le=100000000)
    """Use only this many prompts, chosen by the seed. Unset: all."""
    seed: Seed = 42
    """Decides the order of prompts and so the split."""
    sft_fraction: float = Field(default=1 / 3, ge=0, le=1)
    """Share of the training prompts that SFT uses; preference optimisation gets the rest. 0: no SFT prompts, then
    sft.enabled must be false. 1: no preference prompts, then training.objective must be SFTOnly. The paper: 1/3."""
    evaluation: EvaluationPrompts = EvaluationPrompts()
    """Held-out prompts."""


class Sampling(SpecModel):
    """How models answer prompts. Each prompt has its own seed, so shards and interruptions do not change results."""

    backend: Backend = "vLLM"
    """Engine that generates. Transformers is slower and runs wherever torch does."""
    samples_per_prompt: Samples = 5
    """Responses to each prompt. The best and the worst of the target's make a pair, so the target needs at least 2."""
    temperature: Temperature = 0.8
    """0 is greedy, which makes all responses of a model to a prompt equal: then no pairs can be made."""
    top_p: TopP = 0.95
    """Nucleus: the share of probability that is sampled from; 1 is all."""
    max_tokens: Tokens = 2048
    """Longest response in tokens; a response that reaches it counts as truncated."""
    seed: Seed = 42
    """Start of all random numbers."""
    dtype: Dtype = "auto"
    """Number format of the weights; auto takes the model's own."""
    max_model_length: Tokens | None = None
    """Tokens of prompt and response together. Unset: the model's own limit. Smaller values save memory."""
    system_prompt: Text | None = None
    """System message in front of every prompt. Unset: none."""
    on_prompt_too_long: OnPromptTooLong = "Fail"
    """Fail: a prompt that does not fit the model's context ends the stage with an error that names it.
    Skip: it is left out and counted."""
    tensor_parallel_size: TensorParallel = 1
    """GPUs that share one copy of the model (vLLM). The pod's resources must ask for as many. Re-runs nothing."""
    gpu_memory_utilization: MemoryFraction | None = None
    """Share of a GPU's memory that vLLM takes. Unset: vLLM's default on a GPU, 0.3 on a CPU. Re-runs nothing."""
    prompts_per_part: int = Field(default=32, ge=1, le=65536)
    """Prompts committed together; a killed pod loses at most one such part."""
    shards: Shards = 1
    """Pods that share a model's prompts. Changing it re-runs nothing."""
    quantization: Quantization | None = None
    """vLLM's name of the weights' quantisation, e.g. awq or fp8. Unset: what the model's config says."""
    stop: StopTexts = Field(default=(), json_schema_extra=ATOMIC)
    """Texts that end a response; they are not part of it."""
    stop_token_ids: StopTokens = Field(default=(), json_schema_extra=ATOMIC)
    """Tokens that end a response, beside the model's own end-of-turn tokens."""
    engine_args: FreeObject = Field(default={})
    """Further arguments of vLLM's engine by their Python names, e.g. kv_cache_dtype. Names that vLLM does not know, and
    those that have a field of their own here, are refused when a stage starts. Changing one that decides only speed and
    memory, e.g. max_num_seqs, re-runs nothing."""
    on_source_failure: Literal["Fail", "Continue"] = "Fail"
    """What follows when a source fails for good. Fail: the experiment fails. Continue: it goes on without that source
    as long as one is left, and the condition SourcesDegraded names it."""
    source_prompts: Literal["All", "Needed"] = "All"
    """All: sources answer SFT and preference prompts whatever the objective, so that experiments that differ only in
    objective share samples. Needed: only what the objective uses, which saves sampling for DPO, SimPO and IPO."""


class RewardProvider(SpecModel):
    """Where rewards come from: exactly one of model, function and endpoint."""

    model: ModelName | None = None
    """Hugging Face hub id, absolute path or storage://PATH of a sequence classifier with one label, or of a model with
    ArmoRM's multi-objective head."""
    revision: Revision | None = None
    """Commit, tag or branch of a hub id. Unset: the default branch as it is when a stage runs. Refused for paths."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. A hub id then needs a 40-digit commit as its revision, so that nobody
    can change the code later."""
    chat_template: Text | None = None
    """Jinja chat template that replaces the tokenizer's. Unset: the tokenizer's own."""
    function: str | None = Field(
        default=None, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"
    )
    """MODULE:FUNCTION in the trainer image: takes a list of prompts and one of responses, returns one number each."""
    endpoint: str | None = Field(default=None, max_length=512, pattern=r"^https?://[A-Za-z0-9._:\[\]/-]+$")
    """Base URL of an OpenAI-compatible server of a reward model, e.g. vLLM's."""
    endpoint_model: str | None = Field(default=None, min_length=1, max_length=256)
    """Model name that is sent to the endpoint."""
    weight: Weight = 1.0
    """Share of this reward in the score, which is the weighted mean of all. Changing it scores nothing anew."""


class AdditionalReward(RewardProvider):
    """A further reward, averaged with the first."""

    name: str = Field(min_length=1, max_length=MAX_REWARD_NAME, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Unique name; it stands in stage names (score/SOURCE--NAME). `main` is the first reward."""


class Reward(RewardProvider):
    """The reward: scores every response."""

    max_length: Tokens = 4096
    """Tokens of prompt and response that the reward model reads."""
    truncation: Literal["Right", "Left", "Fail"] = "Right"
    """What becomes of longer texts: cut at their end, cut at their beginning (which keeps the response), or an error
    that names the row. Cut ones are counted."""
    batch_tokens: int = Field(default=16384, ge=1, le=16777216)
    """Upper bound of tokens in one forward pass. Lower it when memory runs out. Changing it re-runs nothing."""
    concurrency: int = Field(default=16, ge=1, le=1024)
    """Requests of one pod to an endpoint that are under way at the same time. Changing it re-runs nothing."""
    dtype: Dtype = "auto"
    """Number format of the weights; auto takes the model's own."""
    rows_per_part: int = Field(default=4096, ge=1, le=1048576)
    """Responses committed together; a killed pod loses at most one such part."""
    shards: Shards = 1
    """Pods that share a scoring stage. Changing it re-runs nothing."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Key of a Secret that is sent to the endpoints as a bearer token. The operator never reads it."""
    additional: tuple[AdditionalReward, ...] = Field(default=(), max_length=3, json_schema_extra=list_map("name"))
    """Further rewards; each scores every response in stages of its own."""


class ModelCache(SpecModel):
    """Models of a hub, downloaded once into the storage."""

    enabled: bool = False
    """True: a stage of its own downloads each hub model once (resumed, with checksums), and later stages need no hub.
    False: every pod downloads what it needs. Changing it re-runs nothing."""


class Curation(SpecModel):
    """Which prompts become training rows. Every dropped prompt is counted by reason."""

    pairing: Literal["WRPO", "WithinSource", "BestWorst"] = "WRPO"
    """WRPO: the best source response, the target's best and its worst. For DPO, SimPO and IPO also WithinSource: the
    best and the worst of the one source whose best is the best of all (FuseChat-3.0), and BestWorst: the best against
    the worst response of all models."""
    score_margin: float = Field(default=0.0, ge=0, le=1000000)
    """Drop a prompt when the responses of its pair differ by less than this in score. 0: keep all."""
    max_score_gap: float | None = Field(default=None, gt=0, le=1000000)
    """Drop a prompt when the responses of its pair differ by more than this in score. Unset: keep all."""
    score_column: str | None = Field(default=None, min_length=1, max_length=128)
    """Decide by this column of the scores, e.g. objective/helpsteer-helpfulness. Unset: by the score."""
    drop_duplicates: bool = True
    """Drop a prompt whose row equals an earlier one's in all texts."""
    max_response_tokens: Tokens | None = None
    """Leave longer responses out of the choice. Unset: none."""
    require_source_better: bool = False
    """Drop a prompt unless the best source response scores above the target's best. Only for the WRPO objectives."""
    on_tie: Literal["Drop", "KeepFirst"] = "Drop"
    """What follows when all of the target's responses to a prompt tie or are identical: drop the prompt, or keep the
    first pair of different texts by a stable order."""
    drop_truncated: bool = False
    """Leave responses that hit maxTokens out of the choice."""


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
"""A kind of storage with its fields; `wrpo_operator.plan.storage` says what each kind means for pods."""


class Storage(SpecModel):
    """Where artifacts lie: exactly one of s3 and volume. Cannot be changed; make a new experiment instead."""

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
