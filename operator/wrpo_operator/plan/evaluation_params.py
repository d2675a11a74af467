"""Parameters (hashed) and runtime (not hashed) of the stages of benchmarks, systems and judges."""

from __future__ import annotations

from itertools import compress
from typing import Any

from wrpo_engine.config import Runtime
from wrpo_engine.contract.base import project, values_of
from wrpo_engine.contract.benchmarks import BenchFields, JudgeExecution
from wrpo_engine.contract.data import ScoreExecution
from wrpo_engine.contract.evaluation import (
    AnswerParams,
    BenchmarkJudge,
    BenchParams,
    EvaluateParams,
    GradeParams,
    JudgeParams,
    MixtureParams,
    PerplexityParams,
    RankParams,
    SelectParams,
)
from wrpo_engine.contract.merging import (
    JointFields,
    JointParams,
    MergeFields,
    MergeParams,
    MergeSearch,
    SearchFields,
)
from wrpo_engine.contract.sampling import (
    EngineFields,
    EvaluationFields,
    GeneratorFields,
    PartFields,
    QuantizationFields,
    ShardExecution,
    SourceExecution,
    StopFields,
)
from wrpo_operator.api.evaluation import Judge
from wrpo_operator.api.members import expanded
from wrpo_operator.api.merging import Search
from wrpo_operator.api.names import MAIN_REWARD, SFT_SYSTEM, TARGET, TRAINED_SYSTEM
from wrpo_operator.api.presets import PRESETS
from wrpo_operator.api.sections import RewardSource
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.params import engine_args, made_model, named_model, reward_model, reward_weights
from wrpo_operator.plan.systems import (
    Column,
    EvaluatedModel,
    Layout,
    Row,
    evaluated_benchmarks,
    evaluated_systems,
)


def bench(column: Column) -> BenchParams:
    """Return the parameters of reading a benchmark."""
    assert column.benchmark is not None
    fields = values_of(column.benchmark, BenchFields)
    return project(BenchParams, fields, benchmark=column.kind, protocol=column.benchmark.protocol)


def model_reference(spec: ExperimentSpec, model: EvaluatedModel) -> Any:
    """Return the reference to a model that answers."""
    roles = {"sft": "sft", "train": "model", "fuse": f"fused/{model.name}", "merge": f"merge/{model.name}"}
    pinned = model.pinned(spec)
    return named_model(pinned) if model.made is None else made_model(roles[model.made], pinned)


def _generator(spec: ExperimentSpec, model: EvaluatedModel) -> dict[str, Any]:
    """Return how a model generates: its own settings, then those of the evaluation, then those of sampling."""
    own = []
    if model.source is not None:
        # A source answers with the weights and the ends of responses with which it is sampled.
        as_sampled = (QuantizationFields, StopFields)
        own = [values_of(spec.sampling, *as_sampled), values_of(model.source.sampling, GeneratorFields, *as_sampled)]
    own += [values_of(model.own, GeneratorFields)] if model.own is not None else []
    found = values_of(spec.sampling, GeneratorFields, PartFields) | values_of(spec.evaluation, GeneratorFields)
    for settings in own:
        found |= settings
    # The library Transformers takes weights as their config says.
    return found if found["backend"] == "vLLM" else {name: found[name] for name in found if name != "quantization"}


def _decoding(spec: ExperimentSpec, column: Column) -> dict[str, Any]:
    """Return how answers to a benchmark are chosen, and whether items have their own temperature."""
    found = values_of(spec.evaluation, EvaluationFields)
    if column.benchmark is None:
        return found
    preset = column.benchmark.preset
    published = PRESETS[(column.kind, preset)] if preset is not None else {}
    own = dict(published) | values_of(column.benchmark.sampling)
    # Judges read the first answer only.
    found["samples_per_prompt"] = 1
    return found | own | {"uses_item_temperature": column.protocol == "MTBench" and "temperature" not in own}


def answer(spec: ExperimentSpec, model: EvaluatedModel, column: Column) -> AnswerParams:
    """Return the parameters of answering a benchmark with one model."""
    return project(
        AnswerParams,
        _generator(spec, model),
        _decoding(spec, column),
        model=model_reference(spec, model),
        system=model.name,
        benchmark=column.kind,
    )


def mixture(
    spec: ExperimentSpec, row: Row, model: EvaluatedModel, column: Column, references: tuple[str, ...]
) -> MixtureParams:
    """Return the parameters of answering a benchmark with a model that reads the answers of the roles `references`."""
    assert row.mixture is not None
    return project(
        MixtureParams,
        _generator(spec, model),
        _decoding(spec, column),
        values_of(row.mixture),
        model=model_reference(spec, model),
        system=row.name,
        benchmark=column.kind,
        references=references,
        uses_item_temperature=False,
    )


def merged(row: Row) -> tuple[str, ...]:
    """Return the names of the models that a merge reads, its base first."""
    assert row.merging is not None
    return (*((row.merging.origin,) if row.merging.origin is not None else ()), *row.merged)


def merge(spec: ExperimentSpec, layout: Layout, row: Row) -> MergeParams:
    """Return the parameters of merging models."""
    own = row.merging
    assert own is not None
    names = row.merge.models if row.merge is not None else row.fuse.sources if row.fuse is not None else ()
    every = expanded(names, tuple(source.name for source in spec.sources))
    left = own.weight if len(own.weight) == 1 else compress(own.weight, (name in row.members for name in every))
    return project(
        MergeParams,
        values_of(own, MergeFields),
        base=None if own.origin is None else model_reference(spec, layout.models[own.origin]),
        models=tuple(model_reference(spec, layout.models[name]) for name in row.merged),
        weight=tuple(left),
        search=None if own.search is None else search(layout, own.search),
    )


def search(layout: Layout, own: Search) -> MergeSearch:
    """Return the parameters of searching the weights of a merge."""
    fields = values_of(own, SearchFields)
    if own.objective is None:
        return project(MergeSearch, fields, reward=reward_model(layout.rewards[own.reward or MAIN_REWARD]))
    column, judge = layout.objective(own.objective)
    found = _benchmark_judge(layout, judge, column)
    return project(MergeSearch, fields, prompts=column.developed(own.prompts), judge=found)


def merge_runtime(spec: ExperimentSpec, layout: Layout, row: Row) -> Runtime:
    """Return the runtime of merging models: with a search that of its reward or its judge."""
    own = row.merging.search if row.merging is not None else None
    if own is None:
        return Runtime()
    if own.objective is None:
        return project(Runtime, values_of(spec.reward, ScoreExecution))
    return judge_runtime(spec, layout.objective(own.objective)[1])


def joint(spec: ExperimentSpec, layout: Layout, row: Row, column: Column) -> JointParams:
    """Return the parameters of answering a benchmark with several models that choose each token together."""
    assert row.joint is not None
    usual = _generator(spec, layout.models[TARGET]) | _decoding(spec, column)
    # Other fields of these names are about drawing tokens, which are not drawn here.
    shared = ("max_tokens", "system_prompt", "dtype", *PartFields.model_fields)
    return project(
        JointParams,
        {name: usual[name] for name in shared if name in usual},
        values_of(row.joint, JointFields),
        members=tuple(model_reference(spec, layout.models[name]) for name in row.members),
        names=row.members,
        system=row.name,
        benchmark=column.kind,
    )


def joint_runtime(spec: ExperimentSpec) -> Runtime:
    """Return the runtime of models that choose each token together."""
    return project(Runtime, values_of(spec.evaluation, ShardExecution))


def generation_runtime(spec: ExperimentSpec, model: EvaluatedModel) -> Runtime:
    """Return the runtime of a model that answers: shards, GPU use, and the engine's settings of sampling."""
    source = values_of(model.source.sampling) if model.source is not None else {}
    sampling = values_of(spec.sampling) | source
    is_vllm = _generator(spec, model)["backend"] == "vLLM"
    fields = SourceExecution.model_fields
    return project(
        Runtime,
        {name: value for name, value in sampling.items() if name in fields},
        values_of(spec.evaluation, ShardExecution),
        engine_args=sampling["engine_args"] if is_vllm else {},
        context_limit=sampling.get("max_model_length"),
    )


def perplexity(spec: ExperimentSpec, row: Row, model: EvaluatedModel) -> PerplexityParams:
    """Return the parameters of measuring the prompts' perplexity under one member of a selection."""
    assert row.select is not None
    reference = model_reference(spec, model)
    return project(PerplexityParams, _generator(spec, model), values_of(row.select), model=reference)


def rank(spec: ExperimentSpec, row: Row, members: tuple[str, ...]) -> RankParams:
    """Return the parameters of comparing the answers of the roles `members` pair by pair."""
    assert row.select is not None
    assert row.select.ranker is not None
    ranker = row.select.ranker
    return project(
        RankParams,
        values_of(spec.sampling, PartFields),
        ranker={"name": ranker.model, "revision": ranker.revision, "trust_remote_code": ranker.trust_remote_code},
        members=members,
    )


def grade(spec: ExperimentSpec, reward: RewardSource, answers: str) -> GradeParams:
    """Return the parameters of scoring the answers of a role with one reward."""
    return project(GradeParams, values_of(spec.reward), reward=reward_model(reward), answers=answers)


def select(row: Row, members: tuple[str, ...], criteria: tuple[str, ...]) -> SelectParams:
    """Return the parameters of choosing among the answers of the roles `members`."""
    assert row.select is not None
    return project(SelectParams, values_of(row.select), members=members, criteria=criteria)


def judge(layout: Layout, judge: Judge, column: Column, row: Row) -> JudgeParams:
    """Return the parameters of asking a judge about a row's answers."""
    return project(
        JudgeParams,
        _benchmark_judge(layout, judge, column).model_dump(exclude_unset=True),
        system=row.name,
        answers=layout.answers_role(row.name, column),
        baseline=None if column.baseline is None else layout.answers_role(column.baseline, column),
    )


def _benchmark_judge(layout: Layout, judge: Judge, column: Column) -> BenchmarkJudge:
    served = layout.rewards[judge.serve_reward] if judge.serve_reward is not None else None
    reward = reward_model(served) if served is not None else None
    name = judge.model or (judge.serve.model if judge.serve is not None else None)
    engine = values_of(judge.serve, EngineFields) if judge.serve is not None else {}
    return project(
        BenchmarkJudge,
        values_of(judge),
        engine | {"engine_args": engine_args(engine, for_speed=False)} if engine else {},
        model=name or (reward.identity if reward is not None else ""),
        benchmark=column.kind,
        benchmark_protocol=column.protocol,
        serve=named_model(judge.serve) if judge.serve is not None else None,
        serve_reward=reward,
    )


def judge_runtime(spec: ExperimentSpec, judge: Judge) -> Runtime:
    """Return the connection to a judge, and how the stage serves a model or a reward itself."""
    own: dict[str, Any] = {}
    if judge.serve_reward is not None:
        batches = values_of(spec.reward, type(spec.reward))
        own = {name: batches[name] for name in ("batch_tokens",) if name in batches}
    if judge.serve is not None:
        settings = values_of(judge.serve, SourceExecution, EngineFields)
        own = settings | {"engine_args": engine_args(settings, for_speed=True)}
    return project(Runtime, own, values_of(judge, JudgeExecution))


def evaluation(spec: ExperimentSpec, layout: Layout) -> EvaluateParams:
    """Return the parameters of the aggregation."""
    own = [name for name in (TARGET, SFT_SYSTEM, TRAINED_SYSTEM) if name in layout.models]
    return EvaluateParams(
        systems=evaluated_systems(spec, layout),
        benchmarks=evaluated_benchmarks(layout),
        subject=own[-1],
        opponents=tuple(own[:-1]),
        reward_weights=reward_weights(spec),
    )
