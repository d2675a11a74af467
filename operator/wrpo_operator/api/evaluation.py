"""Section of the spec about the evaluation: systems answer benchmarks, judges read the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from wrpo_engine.contract.base import Role, automatic, overrides
from wrpo_engine.contract.benchmarks import (
    BenchFields,
    JudgeExecution,
    JudgeFields,
    MixtureFields,
    PerplexityFields,
    Protocol,
    SelectFields,
)
from wrpo_engine.contract.sampling import (
    EngineFields,
    EvaluationFields,
    GeneratorFields,
    ShardExecution,
    SourceExecution,
)
from wrpo_engine.contract.types import ATOMIC, Temperature, Tokens
from wrpo_operator.api.base import SpecModel, list_map
from wrpo_operator.api.fusion import SystemFusion
from wrpo_operator.api.members import BenchmarkName, JudgeName, Members, SystemName
from wrpo_operator.api.merging import Joint, Merge, MergeSettings
from wrpo_operator.api.pods import Resources, SecretKeyRef
from wrpo_operator.api.presets import PresetName
from wrpo_operator.api.sections import PinnedModel, RewardName, RewardSource, Target


@overrides("sampling", GeneratorFields)
class GeneratorOverride(GeneratorFields, SpecModel):
    """Settings in which evaluation differs from sampling."""


@overrides("evaluation", EvaluationFields)
class BenchmarkSampling(EvaluationFields, SpecModel):
    """Settings of the answers to one benchmark. Every unset field takes the value of the preset, then of
    spec.evaluation; samplesPerPrompt is 1, because judges read the first answer only.
    """


class Benchmark(BenchFields, SpecModel):
    """Prompts that all systems answer, besides the held-out prompts."""

    name: Annotated[BenchmarkName, Role.COMPUTED]
    """Unique name: lower-case letters and digits, with single dashes between them. Part of stage names.
    `held-out` is reserved for the held-out prompts."""
    kind: Annotated[Literal["AlpacaEval2", "ArenaHard", "ArenaHardV2", "MTBench", "Custom"], Role.COMPUTED]
    """The published benchmark, or Custom for other prompts."""
    preset: Annotated[PresetName | None, Role.COMPUTED] = None
    """Published decoding settings: FuseEval and SimPO for AlpacaEval2, FuseEval and Official for ArenaHard and MTBench.
    Unset: the settings of spec.evaluation; MTBench has a temperature for each category."""
    sampling: Annotated[BenchmarkSampling, Role.COMPUTED] = BenchmarkSampling()
    """Settings of the answers."""
    baseline: Annotated[SystemName | None, Role.COMPUTED] = None
    """System whose answers are the baseline. Unset: the bundle's. A length-controlled win rate against a system is
    reported as LC-minimal, because the published regulariser belongs to the bundle's baseline."""
    protocol: Annotated[Protocol | None, Role.COMPUTED] = None
    """Custom: protocol of its judges."""


class EvaluationReward(RewardSource):
    """A reward that only scores the evaluation."""


@automatic("tensor_parallel_size")
class ServedModel(SourceExecution, EngineFields, Target):
    """A model that the stage of a judge serves as its own judge with vLLM."""

    resources: Annotated[Resources | None, Role.EXECUTION] = None
    """Resources of the judge's pods. Unset: spec.resources.judge."""


class Judge(JudgeFields, JudgeExecution, SpecModel):
    """A reader of answers: exactly one of endpoint, serve, serveReward and reward."""

    model_config = ConfigDict(alias_generator=lambda name: to_camel(name.removeprefix("judge_")))

    name: Annotated[JudgeName, Role.COMPUTED]
    """Unique name, part of stage names: lower-case letters and digits, with single dashes between them."""
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None  # type: ignore[assignment]
    """Model name that is sent to the endpoint."""
    # The engine always has one, also for a judge that it serves.
    serve: Annotated[ServedModel | None, Role.COMPUTED] = None
    """Model that the stage serves with vLLM and asks, so that no endpoint is needed."""
    serve_reward: Annotated[RewardName | None, Role.COMPUTED] = None
    """Reward that the stage serves as an OpenAI-compatible judge: `main`, or the name of an additional reward or of a
    judge with a reward."""
    reward: Annotated[EvaluationReward | None, Role.COMPUTED] = None
    """Reward that scores answers directly, and takes no part in training."""
    api_key_secret_ref: Annotated[SecretKeyRef | None, Role.EXECUTION] = None
    """Key of a Secret that is sent to the endpoint as a bearer token. The operator never reads it."""
    benchmarks: Annotated[tuple[BenchmarkName, ...], Role.COMPUTED] = Field(
        default=(), max_length=9, json_schema_extra=ATOMIC
    )
    """Names of the benchmarks whose answers it reads; a reward also takes `held-out`. Empty: all that it can read."""


class ModelSystem(GeneratorOverride, Target):
    """A model that answers by itself."""

    resources: Annotated[Resources | None, Role.EXECUTION] = None
    """Resources of the pods that answer with it. Unset: spec.resources.evaluate."""


class Selection(SelectFields, PerplexityFields, SpecModel):
    """Choice of one member's answer to each item."""

    members: Annotated[Members, Role.COMPUTED]
    """Two models or more, in the order that decides ties: target, sft, trained, sources, and systems with a model.
    `*`: all sources."""
    ranker: Annotated[PinnedModel | None, Role.COMPUTED] = None
    """PairRM: model that compares two answers."""
    reward: Annotated[RewardName | None, Role.COMPUTED] = None
    """Reward: `main`, or the name of an additional reward or of a judge with a reward. Unset: main."""


class Mixture(MixtureFields, SpecModel):
    """Mixture-of-Agents: proposers answer, in several rounds; the aggregator reads the last answers and answers."""

    proposers: Annotated[Members, Role.COMPUTED]
    """Models whose answers are read, in the order of the references: target, sft, trained, sources, and systems with a
    model. `*`: all sources."""
    aggregator: Annotated[SystemName, Role.COMPUTED]
    """Model that answers last. Nothing published names it, so it has no default."""
    rounds: Annotated[int, Field(ge=1, le=4), Role.COMPUTED] = 1
    """Layers of proposers. The first one is the proposers' own answers, which other systems share."""
    temperature: Annotated[Temperature, Role.COMPUTED] = 0.7
    """Temperature of models that read references."""
    max_tokens: Annotated[Tokens, Role.COMPUTED] = 2048
    """Longest answer in tokens of models that read references."""


class System(SpecModel):
    """A row of the evaluation: exactly one of model, source, select, mixture, fuse, merge and joint."""

    name: Annotated[SystemName, Role.COMPUTED]
    """Unique name, part of stage names: lower-case letters and digits, with single dashes between them. `target`, `sft`
    and `trained` are reserved for the models of the experiment."""
    model: Annotated[ModelSystem | None, Role.COMPUTED] = None
    """A model that answers by itself."""
    source: Annotated[SystemName | None, Role.COMPUTED] = None
    """Name of a source, which answers by itself. Stages have the source's name, because other systems share them."""
    select: Annotated[Selection | None, Role.COMPUTED] = None
    """Answers of one member for each item."""
    mixture: Annotated[Mixture | None, Role.COMPUTED] = None
    """Answers of a model that reads those of others."""
    fuse: Annotated[SystemFusion | None, Role.COMPUTED] = None
    """A model that the target becomes by a separate SFT, with the distributions of sources (FuseLLM), or by one for
    each source and a merge (FuseChat). The other settings of the SFT are those of spec.sft."""
    merge: Annotated[Merge | None, Role.COMPUTED] = None
    """A model of the weights of several models of the same architecture."""
    joint: Annotated[Joint | None, Role.COMPUTED] = None
    """Answers of several models that choose each token together."""

    @property
    def form_name(self) -> str:
        """Return the name of the form that is set. The rules allow exactly one."""
        return next(name for name in SYSTEM_FORMS if getattr(self, name) is not None)

    @property
    def form(self) -> Any:
        """Return the form that is set: the section, or a source's name."""
        return getattr(self, self.form_name)

    @property
    def merging(self) -> MergeSettings | None:
        """Return how the system's model is merged, of models or of fused ones; None if it is not."""
        return self.merge or (self.fuse.merge if self.fuse is not None else None)


FORM_GROUPS: Mapping[str, str] = {
    "select": "members",
    "mixture": "proposers",
    "fuse": "sources",
    "merge": "models",
    "joint": "members",
}
"""Form of several models -> its field that lists them."""
SYSTEM_FORMS = ("model", "source", *FORM_GROUPS)
"""Fields of which a system has exactly one."""


@automatic("shards")
class Evaluation(ShardExecution, EvaluationFields, GeneratorOverride):
    """Answers of target, SFT model, trained model and further systems to held-out prompts and benchmarks, compared."""

    enabled: Annotated[bool, Role.COMPUTED] = True
    """False: no evaluation; the report has no win rates."""
    benchmarks: tuple[Benchmark, ...] = Field(default=(), max_length=8, json_schema_extra=list_map("name"))
    """Benchmarks besides the held-out prompts. All systems answer each of them."""
    judges: tuple[Judge, ...] = Field(default=(), max_length=4, json_schema_extra=list_map("name"))
    """Readers of the answers, besides the experiment's rewards, which score the answers to held-out prompts."""
    systems: tuple[System, ...] = Field(default=(), max_length=32, json_schema_extra=list_map("name"))
    """Systems besides target, SFT model and trained model."""
