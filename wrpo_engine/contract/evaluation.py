"""Parameters of the stages of benchmarks, systems and judges.

A system turns a benchmark's prompts into answers. A judge, or a reward, reads answers. The artifact of a cell is
addressed by its content, so experiments share cells.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from wrpo_engine.contract.base import Declared, Role, StageParams
from wrpo_engine.contract.benchmarks import (
    BenchFields,
    BenchmarkKind,
    JudgeFields,
    MixtureFields,
    PerplexityFields,
    Protocol,
    SelectFields,
)
from wrpo_engine.contract.data import ScoreFields
from wrpo_engine.contract.references import ModelRef, RewardModel
from wrpo_engine.contract.sampling import (
    EngineFields,
    EvaluationFields,
    GeneratorFields,
    PartFields,
    QuantizationFields,
    StopFields,
)
from wrpo_engine.contract.types import Dtype, Seed, Tokens

SEPARATOR = "--"
"""Between system, benchmark and judge (or reward) in the names of stages and roles. Their own names lack it."""


def cell_name(system: str, benchmark: str, judge: str | None = None) -> str:
    """Return the name of a cell in stages and roles, e.g. moa--mt-bench, or moa--mt-bench--gpt4."""
    return SEPARATOR.join((system, benchmark) if judge is None else (system, benchmark, judge))


class BenchParams(BenchFields, StageParams, role=Role.COMPUTED):
    """Read a benchmark's prompts, references, baseline answers and judge prompts, and check them."""

    stage: Literal["bench"] = "bench"
    benchmark: BenchmarkKind
    protocol: Protocol | None = None
    """Custom: protocol of its judges."""


class _AnswerParams(
    EvaluationFields, StopFields, QuantizationFields, GeneratorFields, PartFields, StageParams, role=Role.COMPUTED
):
    """Answers of one model to the items of one benchmark."""

    model: ModelRef
    system: str
    """Name of the system, for messages."""
    benchmark: BenchmarkKind
    uses_item_temperature: bool = False
    """Whether an item's own temperature, if it has one, replaces `temperature` (MTBench: by category)."""
    on_prompt_too_long: Literal["Fail", "Skip"] = "Skip"
    """Skip: an item that exceeds the model's context gets an empty answer, which is counted."""


class AnswerParams(_AnswerParams, role=Role.COMPUTED):
    """Answer the items of a benchmark with one model. Multi-turn items get one answer a turn, with the history."""

    stage: Literal["answer"] = "answer"


class MixtureParams(MixtureFields, _AnswerParams, role=Role.COMPUTED):
    """Answer the items of a benchmark with one model that reads other systems' answers (Mixture-of-Agents)."""

    stage: Literal["mixture"] = "mixture"
    references: tuple[str, ...] = Field(min_length=1)
    """Roles of the inputs whose answers the model reads, in the order of the references."""


class PerplexityParams(
    QuantizationFields, PerplexityFields, GeneratorFields, PartFields, StageParams, role=Role.COMPUTED
):
    """Measure the log probability of each item's prompt under one model."""

    stage: Literal["perplexity"] = "perplexity"
    model: ModelRef


class RankParams(PartFields, StageParams, role=Role.COMPUTED):
    """Compare the answers of all ordered pairs of members to each item with PairRM."""

    stage: Literal["rank"] = "rank"
    ranker: ModelRef
    members: tuple[str, ...] = Field(min_length=2)
    """Roles of the inputs with the members' answers."""
    max_source_tokens: Tokens = 1224
    """Longest prompt in tokens, with its special tokens."""
    max_length: Tokens = 2048
    """Longest pair in tokens; each candidate gets half of what the prompt leaves."""
    max_candidate_tokens: Tokens | None = None
    """Longest candidate in tokens, with its special tokens; LLM-Blender's own class has 412. Unset: half of what the
    prompt leaves."""
    dtype: Dtype = "auto"
    """Number format of the weights; auto is bfloat16 on a GPU that has it, else float32."""


class SelectParams(SelectFields, StageParams, role=Role.COMPUTED):
    """Choose one member's answer for each item."""

    stage: Literal["select"] = "select"
    members: tuple[str, ...] = Field(min_length=2)
    """Roles of the inputs with the members' answers, in the order that decides ties."""
    criteria: tuple[str, ...] = ()
    """Roles of the inputs that decide: perplexities or scores of each member, in the same order, or one rank."""


class BenchmarkJudge(EngineFields, JudgeFields, role=Role.COMPUTED):
    """A judge as it reads the answers to one benchmark."""

    benchmark: BenchmarkKind
    benchmark_protocol: Protocol
    """Protocol of the benchmark."""
    serve: ModelRef | None = None
    """Model that the stage serves as its own judge with vLLM."""
    serve_reward: RewardModel | None = None
    """Reward that the stage serves as its own judge."""
    order_seed: Seed = 0
    """Seed of the order of the two answers. 0: as the original tools have it."""

    @model_validator(mode="after")
    def _serves_one(self) -> BenchmarkJudge:
        if self.serve is not None and self.serve_reward is not None:
            raise ValueError("judge has both serve and serve_reward; it takes at most one")
        return self


class JudgeParams(BenchmarkJudge, StageParams, role=Role.COMPUTED):
    """Ask a judge about a system's answers. Replies are kept, so they can be read again without a request."""

    stage: Literal["judge"] = "judge"
    system: str
    """Name of the system, for native files."""
    answers: str
    """Role of the input with the system's answers."""
    baseline: str | None = None
    """Role of the input with the baseline's answers. Unset: those of the bundle."""


class GradeParams(ScoreFields, StageParams, role=Role.COMPUTED):
    """Score a system's answers to a benchmark's items with one reward."""

    stage: Literal["grade"] = "grade"
    reward: RewardModel
    answers: str
    """Role of the input with the system's answers."""


class EvaluatedSystem(Declared, role=Role.COMPUTED):
    """A row of the evaluation."""

    name: str
    label: str
    """Name in tables: target, sft, the objective's, or that of the system in the spec."""
    answers: Literal["answers", "mixture", "selected", "joint"] = "answers"
    """Role of its answers, before the cell's name."""
    form: Literal["Model", "Select", "Mixture", "Joint", "Merge", "Fuse"] = "Model"
    members: tuple[str, ...] = ()
    """Names of the systems it is made of."""
    choices: dict[str, str] = Field(default_factory=dict)
    """Choices that were never published, e.g. the aggregator; shown in its row."""
    uses_reward: bool = False
    """Whether the experiment's reward trained or selected it: a score by that reward is then marked."""


class EvaluatedBenchmark(Declared, role=Role.COMPUTED):
    """A group of columns of the evaluation."""

    name: str
    kind: BenchmarkKind
    protocol: Protocol | None = None
    """None: only rewards read its answers."""
    judges: tuple[str, ...] = ()
    """Names of the judges that read its answers, whose roles are verdicts/SYSTEM--BENCHMARK--JUDGE."""
    rewards: tuple[str, ...] = ()
    """Names of the rewards that score its answers, whose roles are grades/SYSTEM--BENCHMARK--REWARD."""
    baseline: str | None = None
    """System whose answers are the baseline. None: those of the bundle."""


class EvaluateParams(StageParams, role=Role.COMPUTED):
    """Aggregate answers, scores and verdicts of all systems into one table, with intervals."""

    stage: Literal["evaluate"] = "evaluate"
    systems: tuple[EvaluatedSystem, ...] = Field(min_length=1)
    """The rows; win rates on held-out prompts are those of the last one of target, sft and trained model."""
    benchmarks: tuple[EvaluatedBenchmark, ...] = Field(min_length=1)
    subject: str
    """Name of the system whose win rates against `opponents` are reported: the trained model."""
    opponents: tuple[str, ...] = ()
    """Names of the systems that it is compared with on held-out prompts."""
    reward_weights: dict[str, float] = Field(default_factory=dict)
    """Reward name -> weight: the score is the weighted mean. Empty: one reward."""
    resamples: int = Field(default=10_000, ge=100, le=1_000_000)
    """Resamples of the intervals."""
    seed: Seed = 0
    """Seed of the resamples."""
