"""Systems, benchmarks and judges of an experiment's evaluation, with all names resolved. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from wrpo_engine.contract.benchmarks import BenchmarkKind, Protocol
from wrpo_engine.contract.evaluation import EvaluatedBenchmark, EvaluatedSystem, cell_name
from wrpo_operator.api.evaluation import FORM_GROUPS, Benchmark, Judge, Mixture, ModelSystem, Selection, System
from wrpo_operator.api.evaluation_names import has_enough, models_of, reads
from wrpo_operator.api.fusion import SystemFusion
from wrpo_operator.api.members import expanded
from wrpo_operator.api.merging import Joint, Merge, MergeSettings, Search, SearchObjective
from wrpo_operator.api.names import HELD_OUT, MAIN_REWARD, SFT_SYSTEM, TARGET, TRAINED_SYSTEM
from wrpo_operator.api.sections import RewardSource, Source, Target
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.wiring import rewards

Form: TypeAlias = Literal["Model", "Select", "Mixture", "Fuse", "Merge", "Joint"]


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model that can answer."""

    name: str
    source: Source | None = None
    own: ModelSystem | None = None
    """None, like `source`: a model that the experiment makes, or the target."""
    origin: Target | None = None
    """Model that gives a merged one configuration, tokenizer and size. None: target."""
    made: Literal["sft", "train", "fuse", "merge"] | None = None
    """Kind of the stage that makes the model. None: it exists."""

    def pinned(self, spec: ExperimentSpec) -> Target:
        """Return the model itself, or the one from which a model is made that is as large."""
        return self.own or self.source or self.origin or spec.target


@dataclass(frozen=True, slots=True)
class Row:
    """A system whose answers are compared."""

    name: str
    label: str
    form: Form
    members: tuple[str, ...] = ()
    """Names of the models that it is made of, failed sources left out."""
    select: Selection | None = None
    mixture: Mixture | None = None
    fuse: SystemFusion | None = None
    merge: Merge | None = None
    joint: Joint | None = None

    @property
    def merging(self) -> MergeSettings | None:
        """How its model is merged; None if it is not."""
        return self.merge or (self.fuse.merge if self.fuse is not None else None)

    @property
    def merged(self) -> tuple[str, ...]:
        """Names of the models that are merged, without the base."""
        return self.members if self.merge is not None else tuple(cell_name(self.name, name) for name in self.members)

    @property
    def answering(self) -> tuple[str, ...]:
        """Names of the models whose own answers it needs."""
        if self.form == "Joint":
            return ()
        return (self.name,) if self.role == "answers" else self.members

    @property
    def role(self) -> Literal["answers", "mixture", "selected", "joint"]:
        """Role of its answers."""
        roles: Mapping[Form, Literal["answers", "mixture", "selected", "joint"]] = {
            "Model": "answers",
            "Select": "selected",
            "Mixture": "mixture",
            "Fuse": "answers",
            "Merge": "answers",
            "Joint": "joint",
        }
        return roles[self.form]


@dataclass(frozen=True, slots=True)
class Column:
    """A benchmark with its readers."""

    name: str
    kind: BenchmarkKind
    benchmark: Benchmark | None
    """None: the held-out prompts."""
    judges: tuple[Judge, ...]
    """Those that get requests."""
    rewards: tuple[str, ...]
    """Names of the rewards that score its answers."""
    baseline: str | None = None
    """Row or model whose answers are the baseline. None: the bundle's."""

    def developed(self, prompts: int) -> int:
        """Return how many of `prompts` development items there are, unless its bundle is smaller."""
        set_aside = self.benchmark.development if self.benchmark is not None else None
        return min(prompts, set_aside or 0)

    @property
    def protocol(self) -> Protocol | None:
        """Return the protocol of its judges; None for prompts that only rewards score."""
        if self.benchmark is not None and self.benchmark.protocol is not None:
            return self.benchmark.protocol
        match self.kind:
            case "Custom" | "HeldOutReward":
                return None
            case kind:
                return kind


@dataclass(frozen=True, slots=True)
class Layout:
    """An evaluation: rows, columns, and what they refer to."""

    models: Mapping[str, EvaluatedModel]
    """All models that can answer, and those that are only merged, by name."""
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    rewards: Mapping[str, RewardSource]
    """All rewards by name, those of judges last."""

    def answering(self, column: Column) -> tuple[str, ...]:
        """Return the names of the models that answer a benchmark by themselves, each once."""
        rows = (name for row in self.rows for name in row.answering)
        baseline = column.baseline
        own = (baseline,) if baseline is not None and baseline in self.models else ()
        return tuple(dict.fromkeys((*rows, *own)))

    def objective(self, objective: SearchObjective) -> tuple[Column, Judge]:
        """Return the benchmark and the judge that a search names. The rules allow no other names."""
        column = next(column for column in self.columns if column.name == objective.benchmark)
        return column, next(judge for judge in column.judges if judge.name == objective.judge)

    def answers_role(self, system: str, column: Column) -> str:
        """Return the role of the answers of a row, or of a model, to a benchmark."""
        role = next((row.role for row in self.rows if row.name == system), "answers")
        return f"{role}/{cell_name(system, column.name)}"


def layout_of(spec: ExperimentSpec, without: frozenset[str] = frozenset()) -> Layout:
    """Return the evaluation of an experiment.

    Sources in `without` have failed: they are members of nothing, a system that needs them is left out, and so is a
    benchmark whose baseline is left out.
    """
    without |= frozenset(_lost_merges(spec, without))
    models = {model.name: model for model in _models(spec, without) if model.name not in without}
    rows = tuple(row for row in _rows(spec, models, without) if _is_complete(row, models))
    judged = rewards(spec)
    judges = {judge.name: judge.reward for judge in spec.evaluation.judges if judge.reward is not None}
    known = {*models, *(row.name for row in rows)}
    columns = (column for column in _columns(spec) if column.baseline is None or column.baseline in known)
    return Layout(models=models, rows=rows, columns=tuple(columns), rewards={**judged, **judges})


def _lost_merges(spec: ExperimentSpec, without: frozenset[str]) -> Iterator[str]:
    """Yield the names of the merged models for which too few models are left."""
    sources = tuple(source.name for source in spec.sources)
    for system in spec.evaluation.systems:
        if (merge := system.merging) is not None:
            left = expanded(getattr(system.form, FORM_GROUPS[system.form_name]), sources, without)
            if merge.origin in without or not has_enough(merge, len(left)):
                yield system.name


def _models(spec: ExperimentSpec, without: frozenset[str]) -> Iterator[EvaluatedModel]:
    sources = {source.name: source for source in spec.sources}
    systems = {system.name: system for system in spec.evaluation.systems}
    for name in models_of(spec):
        source, system = sources.get(name), systems.get(name)
        if source is not None or system is None:
            yield EvaluatedModel(name, source=source, made=_MADE.get(name))
        elif system.merge is not None:
            first = system.merge.origin or next(iter(expanded(system.merge.models, tuple(sources), without)), TARGET)
            own = systems[first].model if first in systems else None
            yield EvaluatedModel(name, origin=sources.get(first) or own, made="merge")
        elif system.fuse is not None and system.fuse.merge is not None:
            yield EvaluatedModel(name, made="merge")
            for fused in expanded(system.fuse.sources, tuple(sources), without):
                yield EvaluatedModel(cell_name(name, fused), made="fuse")
        else:
            yield EvaluatedModel(name, own=system.model, made="fuse" if system.fuse is not None else None)


_MADE: Mapping[str, Literal["sft", "train"]] = {SFT_SYSTEM: "sft", TRAINED_SYSTEM: "train"}


def _rows(spec: ExperimentSpec, models: Iterable[str], without: frozenset[str]) -> Iterator[Row]:
    """Yield the experiment's own models, then its systems."""
    labels = {TARGET: TARGET, SFT_SYSTEM: SFT_SYSTEM, TRAINED_SYSTEM: spec.training.objective.value}
    yield from (Row(name, label, "Model") for name, label in labels.items() if name in models)
    sources = tuple(source.name for source in spec.sources)
    for system in spec.evaluation.systems:
        if system.source not in without and system.name not in without:
            yield _row(system, sources, without)


_FORMS: Mapping[str, Form] = {
    "select": "Select",
    "mixture": "Mixture",
    "fuse": "Fuse",
    "merge": "Merge",
    "joint": "Joint",
}
"""Field of a system and of its row -> form of the row."""


def _row(system: System, sources: tuple[str, ...], without: frozenset[str]) -> Row:
    """Return a system as a row."""
    for field, group in FORM_GROUPS.items():
        section = getattr(system, field)
        if section is not None:
            members = expanded(getattr(section, group), sources, without)
            return Row(system.name, system.name, _FORMS[field], members, **{field: section})
    # The answers of a source have its name, so that other systems share them.
    return Row(system.source or system.name, system.name, "Model")


def _is_complete(row: Row, models: Iterable[str]) -> bool:
    """Return whether enough models are left for a row."""
    if row.mixture is not None:
        return bool(row.members) and row.mixture.aggregator in models
    return (row.select is None and row.joint is None) or len(row.members) > 1


def _columns(spec: ExperimentSpec) -> Iterator[Column]:
    """Yield the held-out prompts, then the benchmarks."""
    judges = spec.evaluation.judges
    sources = {system.name: system.source for system in spec.evaluation.systems if system.source is not None}
    scoring = [judge for judge in judges if judge.reward is not None]
    beside = (judge.name for judge in scoring if not judge.benchmarks or HELD_OUT in judge.benchmarks)
    yield Column(HELD_OUT, "HeldOutReward", None, (), (*rewards(spec), *beside))
    for benchmark in spec.evaluation.benchmarks:
        readers = [judge for judge in judges if reads(judge, benchmark)]
        yield Column(
            benchmark.name,
            benchmark.kind,
            benchmark,
            tuple(judge for judge in readers if judge.reward is None),
            tuple(judge.name for judge in readers if judge.reward is not None),
            sources.get(benchmark.baseline or "", benchmark.baseline),
        )


def evaluated_systems(spec: ExperimentSpec, layout: Layout) -> tuple[EvaluatedSystem, ...]:
    """Return the rows as parameters of the aggregation."""
    own = set(rewards(spec))
    return tuple(
        EvaluatedSystem(
            name=row.name,
            label=row.label,
            answers=row.role,
            form=row.form,
            members=row.members,
            choices=_choices(row, layout),
            # The reward chose the rows that the models of the experiment are trained on.
            uses_reward=_is_trained(row, layout)
            or not own.isdisjoint((selecting_reward(row), _measuring(row, layout))),
        )
        for row in layout.rows
    )


def evaluated_benchmarks(layout: Layout) -> tuple[EvaluatedBenchmark, ...]:
    """Return the columns as parameters of the aggregation."""
    return tuple(
        EvaluatedBenchmark(
            name=column.name,
            kind=column.kind,
            protocol=column.protocol,
            judges=tuple(judge.name for judge in column.judges),
            rewards=column.rewards,
            baseline=column.baseline,
        )
        for column in layout.columns
    )


def selecting_reward(row: Row) -> str | None:
    """Return the reward whose scores select a row's answers; None if none does."""
    is_by_reward = row.select is not None and row.select.by == "Reward"
    return (row.select.reward or MAIN_REWARD) if row.select is not None and is_by_reward else None


def searching_reward(row: Row) -> str | None:
    """Return the reward whose mean the search of a row's merge maximises; None if there is none."""
    search = row.merging.search if row.merging is not None else None
    return None if search is None or search.objective is not None else search.reward or MAIN_REWARD


def searching_objective(row: Row) -> SearchObjective | None:
    """Return the benchmark and the judge whose score the search of a row's merge maximises; None if there is none."""
    search = row.merging.search if row.merging is not None else None
    return None if search is None else search.objective


def _measuring(row: Row, layout: Layout) -> str | None:
    """Return the reward by which a row's merge is searched, also one that is served as a judge; None for none."""
    objective = searching_objective(row)
    return searching_reward(row) if objective is None else layout.objective(objective)[1].serve_reward


def _is_trained(row: Row, layout: Layout) -> bool:
    """Return whether a row is, or contains the weights or distributions of, a model that the experiment trains."""
    if row.form not in {"Merge", "Joint"}:
        return row.name in {SFT_SYSTEM, TRAINED_SYSTEM} or row.form == "Fuse"
    rows = {other.name: other for other in layout.rows}
    base = (row.merge.origin,) if row.merge is not None else ()
    return any(_is_trained(rows[name], layout) for name in (*base, *row.members) if name in rows)


def _set_fields(section: MergeSettings | Joint, layout: Layout) -> dict[str, str]:
    """Return the method and the settings that differ from their defaults, and all settings of a search."""
    fields = section.model_dump(exclude={"base", "models", "members", "search"}, exclude_defaults=True)
    search = section.search if isinstance(section, MergeSettings) else None
    return {name: str(value) for name, value in fields.items()} | ({} if search is None else _searched(search, layout))


def _searched(search: Search, layout: Layout) -> dict[str, str]:
    """Return all that a search depends on, because nothing published says any of it."""
    settings = search.model_dump(exclude={"reward", "objective"})
    if search.objective is None:
        settings["reward"] = search.reward or MAIN_REWARD
    else:
        column, judge = layout.objective(search.objective)
        settings["prompts"] = column.developed(search.prompts)
        settings["objective"] = f"{column.name} by {judge.name}, on items that no system is evaluated on"
    return {f"search {name}": str(value) for name, value in settings.items()}


def _merged_fusion(merge: MergeSettings, layout: Layout) -> dict[str, str]:
    """Return how the models of a fusion with each source become one; its weights are not that of the fusion loss."""
    fields = _set_fields(merge, layout)
    return {"trainings": "one for each source", **{_MERGE_NAMES.get(name, name): fields[name] for name in fields}}


_MERGE_NAMES = {"method": "merge", "weight": "merge weights"}


def _choices(row: Row, layout: Layout) -> dict[str, str]:
    """Return the unpublished choices for a row."""
    if row.mixture is not None:
        return {"aggregator": row.mixture.aggregator, "rounds": str(row.mixture.rounds)}
    if row.fuse is not None:
        names = ("strategy", "normalise", "alignment", "vocabulary", "weight")
        settings = {name: str(getattr(row.fuse, name)) for name in names}
        merged = {} if row.fuse.merge is None else _merged_fusion(row.fuse.merge, layout)
        return {"sources": ", ".join(row.members), "rows": "those of SFT", **settings, **merged}
    if row.merge is not None:
        base = {} if row.merge.origin is None else {"base": row.merge.origin}
        return {**base, "models": ", ".join(row.members), **_set_fields(row.merge, layout)}
    if row.joint is not None:
        return {"members": ", ".join(row.members), **_set_fields(row.joint, layout)}
    if row.select is None:
        return {}
    by: dict[str, dict[str, str]] = {
        "Perplexity": {"text": row.select.text, "normalise": row.select.normalise},
        "PairRM": {"aggregation": row.select.aggregation},
        "Reward": {"reward": selecting_reward(row) or MAIN_REWARD},
        "Random": {"seed": str(row.select.seed)},
    }
    return {"by": row.select.by, **by[row.select.by]}
