"""Systems, benchmarks and judges of an experiment's evaluation, with all names resolved. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from wrpo_engine.contract.benchmarks import BenchmarkKind, Protocol
from wrpo_engine.contract.evaluation import EvaluatedBenchmark, EvaluatedSystem, cell_name
from wrpo_operator.api.evaluation import Benchmark, Judge, Mixture, ModelSystem, Selection, System
from wrpo_operator.api.evaluation_names import models_of, reads
from wrpo_operator.api.fusion import Fusion
from wrpo_operator.api.members import expanded
from wrpo_operator.api.names import HELD_OUT, MAIN_REWARD, SFT_SYSTEM, TARGET, TRAINED_SYSTEM
from wrpo_operator.api.sections import RewardSource, Source
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.wiring import rewards

Form: TypeAlias = Literal["Model", "Select", "Mixture", "Fuse"]


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model that can answer."""

    name: str
    source: Source | None = None
    own: ModelSystem | None = None
    """None, like `source`: a model that the experiment makes, or the target."""


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
    fuse: Fusion | None = None

    @property
    def answering(self) -> tuple[str, ...]:
        """Names of the models whose own answers it needs."""
        return (self.name,) if self.role == "answers" else self.members

    @property
    def role(self) -> Literal["answers", "mixture", "selected"]:
        """Role of its answers."""
        roles: Mapping[Form, Literal["answers", "mixture", "selected"]] = {
            "Model": "answers",
            "Select": "selected",
            "Mixture": "mixture",
            "Fuse": "answers",
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
    """All models that can answer, by name."""
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

    def answers_role(self, system: str, column: Column) -> str:
        """Return the role of the answers of a row, or of a model, to a benchmark."""
        role = next((row.role for row in self.rows if row.name == system), "answers")
        return f"{role}/{cell_name(system, column.name)}"


def layout_of(spec: ExperimentSpec, without: frozenset[str] = frozenset()) -> Layout:
    """Return the evaluation of an experiment.

    Sources in `without` have failed: they are members of nothing, a system that needs them is left out, and so is a
    benchmark whose baseline is left out.
    """
    models = {model.name: model for model in _models(spec) if model.name not in without}
    rows = tuple(row for row in _rows(spec, models, without) if _is_complete(row, models))
    judged = rewards(spec)
    judges = {judge.name: judge.reward for judge in spec.evaluation.judges if judge.reward is not None}
    known = {*models, *(row.name for row in rows)}
    columns = (column for column in _columns(spec) if column.baseline is None or column.baseline in known)
    return Layout(models=models, rows=rows, columns=tuple(columns), rewards={**judged, **judges})


def _models(spec: ExperimentSpec) -> Iterator[EvaluatedModel]:
    sources = {source.name: source for source in spec.sources}
    systems = {system.name: system.model for system in spec.evaluation.systems}
    for name in models_of(spec):
        yield EvaluatedModel(name, source=sources.get(name), own=systems.get(name))


def _rows(spec: ExperimentSpec, models: Iterable[str], without: frozenset[str]) -> Iterator[Row]:
    """Yield the experiment's own models, then its systems."""
    labels = {TARGET: TARGET, SFT_SYSTEM: SFT_SYSTEM, TRAINED_SYSTEM: spec.training.objective.value}
    yield from (Row(name, label, "Model") for name, label in labels.items() if name in models)
    sources = tuple(source.name for source in spec.sources)
    for system in spec.evaluation.systems:
        if system.source not in without:
            yield _FORMS[_form_of(system)](system, lambda names: expanded(names, sources, without))


def _form_of(system: System) -> Form:
    forms: tuple[tuple[object, Form], ...] = (
        (system.select, "Select"),
        (system.mixture, "Mixture"),
        (system.fuse, "Fuse"),
    )
    return next((form for section, form in forms if section is not None), "Model")


_Expand: TypeAlias = Callable[[tuple[str, ...]], tuple[str, ...]]


def _selection(system: System, expand: _Expand) -> Row:
    assert system.select is not None
    return Row(system.name, system.name, "Select", expand(system.select.members), select=system.select)


def _mixture(system: System, expand: _Expand) -> Row:
    assert system.mixture is not None
    return Row(system.name, system.name, "Mixture", expand(system.mixture.proposers), mixture=system.mixture)


def _fused(system: System, expand: _Expand) -> Row:
    assert system.fuse is not None
    return Row(system.name, system.name, "Fuse", expand(system.fuse.sources), fuse=system.fuse)


_FORMS: Mapping[Form, Callable[[System, _Expand], Row]] = {
    # The answers of a source have its name, so that other systems share them.
    "Model": lambda system, _expand: Row(system.source or system.name, system.name, "Model"),
    "Select": _selection,
    "Mixture": _mixture,
    "Fuse": _fused,
}
"""How a system of each form becomes a row."""


def _is_complete(row: Row, models: Iterable[str]) -> bool:
    """Return whether enough models are left for a row."""
    if row.mixture is not None:
        return bool(row.members) and row.mixture.aggregator in models
    return row.select is None or len(row.members) > 1


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
    own = tuple(rewards(spec))
    return tuple(
        EvaluatedSystem(
            name=row.name,
            label=row.label,
            answers=row.role,
            form=row.form,
            members=row.members,
            choices=_choices(row),
            # The reward chose the rows that the models of the experiment are trained on.
            uses_reward=row.name in {SFT_SYSTEM, TRAINED_SYSTEM} or row.form == "Fuse" or selecting_reward(row) in own,
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


def _choices(row: Row) -> dict[str, str]:
    """Return the unpublished choices for a row."""
    if row.mixture is not None:
        return {"aggregator": row.mixture.aggregator, "rounds": str(row.mixture.rounds)}
    if row.fuse is not None:
        names = ("strategy", "normalise", "alignment", "vocabulary", "weight")
        settings = {name: str(getattr(row.fuse, name)) for name in names}
        return {"sources": ", ".join(row.members), "rows": "those of SFT", **settings}
    if row.select is None:
        return {}
    by: dict[str, dict[str, str]] = {
        "Perplexity": {"text": row.select.text, "normalise": row.select.normalise},
        "PairRM": {"aggregation": row.select.aggregation},
        "Reward": {"reward": selecting_reward(row) or MAIN_REWARD},
        "Random": {"seed": str(row.select.seed)},
    }
    return {"by": row.select.by, **by[row.select.by]}
