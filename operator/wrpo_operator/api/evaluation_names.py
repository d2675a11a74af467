"""Names that refer to each other: of systems, members, benchmarks, judges, rewards and fused sources.

The API server checks each rule with one message; `evaluation_errors` adds the field and the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from wrpo_engine.contract.evaluation import SEPARATOR
from wrpo_engine.contract.objectives import Objective
from wrpo_operator.api.evaluation import FORM_GROUPS, Benchmark, Judge
from wrpo_operator.api.fusion import SystemFusion
from wrpo_operator.api.members import EVERY_SOURCE, expanded
from wrpo_operator.api.merging import FusedMerge, Merge, MergeSettings, SearchObjective
from wrpo_operator.api.names import HELD_OUT, MAIN_REWARD, SFT_SYSTEM, TARGET, TRAINED_SYSTEM
from wrpo_operator.api.rule import Rule
from wrpo_operator.api.spec import ExperimentSpec

_OF_SEVERAL = ("Linear", "ModelStock")
"""Methods that merge two models or more."""
_Found: TypeAlias = Iterator[tuple[str, Any]]
"""Path of a field and its value."""


def models_of(spec: ExperimentSpec) -> tuple[str, ...]:
    """Return the names of all models that can answer: the experiment's own, sources, and systems that are a model."""
    own = (
        TARGET,
        *((SFT_SYSTEM,) if spec.sft.enabled else ()),
        *((TRAINED_SYSTEM,) if spec.training.objective is not Objective.SFT_ONLY else ()),
    )
    systems = (system.name for system in spec.evaluation.systems if system.model or system.fuse or system.merge)
    return (*own, *(source.name for source in spec.sources), *systems)


def _mergeable_models(spec: ExperimentSpec) -> tuple[str, ...]:
    """Return the names of the models that can be merged: all that are not merged themselves."""
    merged = {system.name for system in spec.evaluation.systems if system.merging is not None}
    return tuple(name for name in models_of(spec) if name not in merged)


def rewards_of(spec: ExperimentSpec) -> tuple[str, ...]:
    """Return the names of all rewards: the experiment's own, and those of judges."""
    judges = (judge.name for judge in spec.evaluation.judges if judge.reward is not None)
    return (MAIN_REWARD, *(reward.name for reward in spec.reward.additional), *judges)


_MERGEABLE = " || ".join(
    (
        f"({{0}} == '{TARGET}'",
        f"({{0}} == '{SFT_SYSTEM}' && self.sft.enabled)",
        f"({{0}} == '{TRAINED_SYSTEM}' && self.training.objective != '{Objective.SFT_ONLY}')",
        "self.sources.exists(x, x.name == {0})",
        "self.evaluation.systems.exists(x, x.name == {0} && (has(x.model) || (has(x.fuse) && !has(x.fuse.merge)))))",
    )
)
"""CEL: a name is that of a model that can be merged."""
_MODEL = _MERGEABLE.replace("(has(x.fuse) && !has(x.fuse.merge))", "has(x.fuse) || has(x.merge)")
"""CEL: a name is that of a model that can answer."""
_REWARD = (
    f"({{0}} == '{MAIN_REWARD}' || self.reward.additional.exists(x, x.name == {{0}})"
    " || self.evaluation.judges.exists(x, x.name == {0} && has(x.reward)))"
)
"""CEL: a name is that of a reward."""
_SYSTEMS, _JUDGES, _BENCHMARKS = (f"self.evaluation.{name}" for name in ("systems", "judges", "benchmarks"))


def _fused_lists(spec: ExperimentSpec) -> Iterator[tuple[str, tuple[str, ...]]]:
    if spec.sft.fusion is not None:
        yield "spec.sft.fusion.sources", spec.sft.fusion.sources
    for index, system in enumerate(spec.evaluation.systems):
        if system.fuse is not None:
            yield f"spec.evaluation.systems[{index}].fuse.sources", system.fuse.sources


def _unknown_fused(spec: ExperimentSpec) -> _Found:
    known = {*(source.name for source in spec.sources), EVERY_SOURCE}
    for path, members in _fused_lists(spec):
        yield from ((f"{path}[{index}]", name) for index, name in enumerate(members) if name not in known)


def _member_lists(spec: ExperimentSpec) -> Iterator[tuple[str, tuple[str, ...]]]:
    for index, system in enumerate(spec.evaluation.systems):
        path = f"spec.evaluation.systems[{index}]"
        if system.select is not None:
            yield f"{path}.select.members", system.select.members
        if system.mixture is not None:
            yield f"{path}.mixture.proposers", system.mixture.proposers
        if system.joint is not None:
            yield f"{path}.joint.members", system.joint.members


def _merges(spec: ExperimentSpec) -> Iterator[tuple[str, Merge]]:
    for index, system in enumerate(spec.evaluation.systems):
        if system.merge is not None:
            yield f"spec.evaluation.systems[{index}].merge", system.merge


def _unknown_merged(spec: ExperimentSpec) -> _Found:
    known = _mergeable_models(spec)
    for path, merge in _merges(spec):
        for index, name in enumerate(merge.models):
            if name not in (*known, EVERY_SOURCE):
                yield f"{path}.models[{index}]", name
        if merge.base is not None and merge.base not in known:
            yield f"{path}.base", merge.base


def _fused_merges(spec: ExperimentSpec) -> Iterator[tuple[str, SystemFusion, FusedMerge]]:
    for index, system in enumerate(spec.evaluation.systems):
        if system.fuse is not None and system.fuse.merge is not None:
            yield f"spec.evaluation.systems[{index}].fuse", system.fuse, system.fuse.merge


def _count(spec: ExperimentSpec, names: tuple[str, ...]) -> int:
    return len(expanded(names, tuple(source.name for source in spec.sources)))


def _miscounted_merges(spec: ExperimentSpec) -> _Found:
    for path, merge in _merges(spec):
        if not has_enough(merge, _count(spec, merge.models)):
            yield f"{path}.models", list(merge.models)


def _miscounted_fused_merges(spec: ExperimentSpec) -> _Found:
    for path, fusion, merge in _fused_merges(spec):
        if not has_enough(merge, _count(spec, fusion.sources)):
            yield f"{path}.sources", list(fusion.sources)


def has_enough(merge: MergeSettings, count: int) -> bool:
    """Return whether a method can merge this number of models. One fused model alone is a fusion without merge."""
    least = 2 if merge.method in _OF_SEVERAL or isinstance(merge, FusedMerge) else 1
    return count == 2 if merge.method == "SLERP" else count >= least


def _miscounted_weights(spec: ExperimentSpec) -> _Found:
    for path, merge in _merges(spec):
        if len(merge.weight) not in {1, _count(spec, merge.models)}:
            yield f"{path}.weights", list(merge.weight)
    for path, fusion, fused in _fused_merges(spec):
        if len(fused.weight) not in {1, _count(spec, fusion.sources)}:
            yield f"{path}.merge.weights", list(fused.weight)


def _bases_among_models(spec: ExperimentSpec) -> _Found:
    sources = tuple(source.name for source in spec.sources)
    for path, merge in _merges(spec):
        if merge.needs_base and merge.origin in expanded(merge.models, sources):
            yield f"{path}.models", list(merge.models)


def _unknown_members(spec: ExperimentSpec) -> _Found:
    known = {*models_of(spec), EVERY_SOURCE}
    for path, members in _member_lists(spec):
        yield from ((f"{path}[{index}]", name) for index, name in enumerate(members) if name not in known)


def _unknown_aggregators(spec: ExperimentSpec) -> _Found:
    for index, system in enumerate(spec.evaluation.systems):
        if system.mixture is not None and system.mixture.aggregator not in models_of(spec):
            yield f"spec.evaluation.systems[{index}].mixture.aggregator", system.mixture.aggregator


def _counted_twice(spec: ExperimentSpec) -> _Found:
    sources = {source.name for source in spec.sources}
    merged = ((f"{path}.models", merge.models) for path, merge in _merges(spec))
    for path, members in (*_member_lists(spec), *_fused_lists(spec), *merged):
        if EVERY_SOURCE in members:
            yield from ((f"{path}[{index}]", name) for index, name in enumerate(members) if name in sources)


def _too_few(spec: ExperimentSpec) -> _Found:
    sources = tuple(source.name for source in spec.sources)
    for index, system in enumerate(spec.evaluation.systems):
        for form in ("select", "joint"):
            section = getattr(system, form)
            if section is not None and len(expanded(section.members, sources)) < 2:
                yield f"spec.evaluation.systems[{index}].{form}.members", list(section.members)


def _unknown_sources(spec: ExperimentSpec) -> _Found:
    sources = {source.name for source in spec.sources}
    for index, system in enumerate(spec.evaluation.systems):
        if system.source is not None and system.source not in sources:
            yield f"spec.evaluation.systems[{index}].source", system.source


def _sources_twice(spec: ExperimentSpec) -> _Found:
    found = [system.source for system in spec.evaluation.systems]
    for index, source in enumerate(found):
        if source is not None and source in found[:index]:
            yield f"spec.evaluation.systems[{index}].source", source


def _named_as_sources(spec: ExperimentSpec) -> _Found:
    sources = {source.name for source in spec.sources}
    for index, system in enumerate(spec.evaluation.systems):
        if system.source != system.name and system.name in sources:
            yield f"spec.evaluation.systems[{index}].name", system.name


def _ambiguous_sources(spec: ExperimentSpec) -> _Found:
    for index, source in enumerate(spec.sources if spec.evaluation.systems else ()):
        if SEPARATOR in source.name or source.name in (SFT_SYSTEM, TRAINED_SYSTEM):
            yield f"spec.sources[{index}].name", source.name


def _unknown_baselines(spec: ExperimentSpec) -> _Found:
    known = {*models_of(spec), *(system.name for system in spec.evaluation.systems)}
    for index, benchmark in enumerate(spec.evaluation.benchmarks):
        if benchmark.baseline is not None and benchmark.baseline not in known:
            yield f"spec.evaluation.benchmarks[{index}].baseline", benchmark.baseline


def _unknown_benchmarks(spec: ExperimentSpec) -> _Found:
    known = {benchmark.name for benchmark in spec.evaluation.benchmarks}
    for index, judge in enumerate(spec.evaluation.judges):
        readable = known | ({HELD_OUT} if judge.reward is not None else set())
        for place, name in enumerate(judge.benchmarks):
            if name not in readable:
                yield f"spec.evaluation.judges[{index}].benchmarks[{place}]", name


def reads(judge: Judge, benchmark: Benchmark) -> bool:
    """Return whether a judge reads the answers to a benchmark."""
    is_named = not judge.benchmarks or benchmark.name in judge.benchmarks
    return is_named and (judge.reward is not None or benchmark.kind != "Custom" or benchmark.protocol is not None)


def _unjudged(spec: ExperimentSpec) -> _Found:
    for index, benchmark in enumerate(spec.evaluation.benchmarks):
        if not any(reads(judge, benchmark) for judge in spec.evaluation.judges):
            yield f"spec.evaluation.benchmarks[{index}]", benchmark.name


def _unknown_rewards(spec: ExperimentSpec) -> _Found:
    known = rewards_of(spec)
    for index, system in enumerate(spec.evaluation.systems):
        if system.select is not None and system.select.reward not in (None, *known):
            yield f"spec.evaluation.systems[{index}].select.reward", system.select.reward
        if system.merging is not None and system.merging.search is not None:
            section = "merge" if system.merge is not None else "fuse.merge"
            if system.merging.search.reward not in (None, *known):
                yield f"spec.evaluation.systems[{index}].{section}.search.reward", system.merging.search.reward
    for index, judge in enumerate(spec.evaluation.judges):
        if judge.serve_reward not in (None, *known):
            yield f"spec.evaluation.judges[{index}].serveReward", judge.serve_reward


def _objectives(spec: ExperimentSpec) -> Iterator[tuple[str, SearchObjective]]:
    for index, system in enumerate(spec.evaluation.systems):
        search = system.merging.search if system.merging is not None else None
        if search is not None and search.objective is not None:
            section = "merge" if system.merge is not None else "fuse.merge"
            yield f"spec.evaluation.systems[{index}].{section}.search.objective", search.objective


def _undeveloped_benchmarks(spec: ExperimentSpec) -> _Found:
    known = {each.name for each in spec.evaluation.benchmarks if each.development is not None and each.baseline is None}
    for path, objective in _objectives(spec):
        if objective.benchmark not in known:
            yield f"{path}.benchmark", objective.benchmark


def _evaluated_elsewhere(spec: ExperimentSpec) -> _Found:
    """Yield the benchmarks that share a bundle with an earlier one but set other items of it aside."""
    first: dict[str, Benchmark] = {}
    for index, benchmark in enumerate(spec.evaluation.benchmarks):
        other = first.setdefault(benchmark.bundle or benchmark.kind, benchmark)
        is_same = (other.development, other.limit) == (benchmark.development, benchmark.limit)
        if not is_same and (other.development or benchmark.development):
            yield f"spec.evaluation.benchmarks[{index}]", benchmark.name


def _unusable_judges(spec: ExperimentSpec) -> _Found:
    benchmarks = {benchmark.name: benchmark for benchmark in spec.evaluation.benchmarks}
    judges = {judge.name: judge for judge in spec.evaluation.judges}
    for path, objective in _objectives(spec):
        judge, benchmark = judges.get(objective.judge), benchmarks.get(objective.benchmark)
        is_asked = judge is not None and judge.reward is None and judge.serve is None
        # A benchmark that is not there has its own message.
        if not is_asked or (judge is not None and benchmark is not None and not reads(judge, benchmark)):
            yield f"{path}.judge", objective.judge


def _named_as_rewards(spec: ExperimentSpec) -> _Found:
    rewards = {reward.name for reward in spec.reward.additional}
    for index, judge in enumerate(spec.evaluation.judges):
        if judge.name in rewards:
            yield f"spec.evaluation.judges[{index}].name", judge.name


@dataclass(frozen=True, slots=True)
class _NameRule:
    cel: str
    message: str
    find: Callable[[ExperimentSpec], _Found]
    """Yields the fields that break it."""


_EACH_LIST = tuple((form, FORM_GROUPS[form]) for form in ("select", "mixture", "joint"))
_EACH_GROUP = (*_EACH_LIST, *(item for item in FORM_GROUPS.items() if item not in _EACH_LIST))
_COUNT = f"(size(s.{{0}}) + ('{EVERY_SOURCE}' in s.{{0}} ? size(self.sources) - 1 : 0))"
"""CEL: number of the models that a list of a system names."""
_MERGED, _MERGED_SOURCES = _COUNT.format("merge.models"), _COUNT.format("fuse.sources")
_PAIRWISE = "(has(s.fuse) && has(s.fuse.merge))"
"""CEL: a system is a merge of models that are fused with one source each."""
_ORIGIN = f"(has(s.merge.base) ? s.merge.base : '{TARGET}')"
_FUSION = "self.sft.fusion"
_FUSED = f"(m == '{EVERY_SOURCE}' || self.sources.exists(x, x.name == m))"
_JUDGED = "(has(j.reward) || b.kind != 'Custom' || has(b.protocol))"


def _of_objectives(condition: str) -> str:
    """CEL: a condition holds for the objective, {0} in it, of every search."""
    return " && ".join(
        f"{_SYSTEMS}.all(s, !{has} || !has({path}.search) || !has({path}.search.objective)"
        f" || ({condition.format(f'{path}.search.objective')}))"
        for has, path in (("has(s.merge)", "s.merge"), (_PAIRWISE, "s.fuse.merge"))
    )


_NAME_RULES: tuple[_NameRule, ...] = (
    _NameRule(
        " && ".join(
            f"{_SYSTEMS}.all(s, !has(s.{form}) || s.{form}.{field}.all(m, m == '{EVERY_SOURCE}'"
            f" || {_MODEL.format('m')}))"
            for form, field in _EACH_LIST
        ),
        "members are models: target, sft (if sft.enabled), trained (unless SFTOnly), names of sources, and of systems "
        "with model, merge or fuse; correct the name or add that model",
        _unknown_members,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, !has(s.merge) || ((!has(s.merge.base) || {_MERGEABLE.format('s.merge.base')})"
        f" && s.merge.models.all(m, m == '{EVERY_SOURCE}' || {_MERGEABLE.format('m')})))",
        "merged models are target, sft (if sft.enabled), trained (unless SFTOnly), names of sources, and of systems "
        "with model, or with fuse that is not merged; correct the name or add that model",
        _unknown_merged,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, !has(s.merge) || (s.merge.method == 'SLERP' ? {_MERGED} == 2"
        f" : {_MERGED} >= (s.merge.method in {list(_OF_SEVERAL)} ? 2 : 1)))",
        "SLERP merges exactly two models, Linear and ModelStock two or more, all others one or more; correct the list "
        "or choose another method",
        _miscounted_merges,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, !{_PAIRWISE} || (s.fuse.merge.method == 'SLERP' ? {_MERGED_SOURCES} == 2"
        f" : {_MERGED_SOURCES} >= 2))",
        "fuse.merge merges one model for each source: SLERP exactly two, all others two or more; add sources, choose "
        "another method, or remove merge to fuse one source",
        _miscounted_fused_merges,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, !has(s.merge) || size(s.merge.weights) == 1 || size(s.merge.weights) == {_MERGED})"
        f" && {_SYSTEMS}.all(s, !{_PAIRWISE} || size(s.fuse.merge.weights) == 1"
        f" || size(s.fuse.merge.weights) == {_MERGED_SOURCES})",
        "weights has one value for all models, or one for each model, each source of `*` included; correct the number",
        _miscounted_weights,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, !has(s.merge) || s.merge.method in ['Linear', 'SLERP'] || !({_ORIGIN} in s.merge.models"
        f" || ('{EVERY_SOURCE}' in s.merge.models && self.sources.exists(x, x.name == {_ORIGIN}))))",
        "the base, which is target if unset, has no delta from itself; remove it from models or choose another base",
        _bases_among_models,
    ),
    _NameRule(
        f"(!has({_FUSION}) || {_FUSION}.sources.all(m, {_FUSED}))"
        f" && {_SYSTEMS}.all(s, !has(s.fuse) || s.fuse.sources.all(m, {_FUSED}))",
        "the models that are fused are sources; correct the name or add the source",
        _unknown_fused,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, !has(s.mixture) || {_MODEL.format('s.mixture.aggregator')})",
        "the aggregator is a model: target, sft, trained, the name of a source, or of a system with model, "
        "merge or fuse; correct the name or add that model",
        _unknown_aggregators,
    ),
    _NameRule(
        " && ".join(
            f"{_SYSTEMS}.all(s, !has(s.{form}) || !('{EVERY_SOURCE}' in s.{form}.{field})"
            f" || !self.sources.exists(x, x.name in s.{form}.{field}))"
            for form, field in _EACH_GROUP
        )
        + f" && (!has({_FUSION}) || !('{EVERY_SOURCE}' in {_FUSION}.sources)"
        f" || !self.sources.exists(x, x.name in {_FUSION}.sources))",
        "`*` contains all sources, so a source must not be listed with it; remove one of them",
        _counted_twice,
    ),
    _NameRule(
        " && ".join(
            f"{_SYSTEMS}.all(s, !has(s.{form}) || size(s.{form}.members)"
            f" + ('{EVERY_SOURCE}' in s.{form}.members ? size(self.sources) - 1 : 0) >= 2)"
            for form in ("select", "joint")
        ),
        "one member alone has nothing to choose from; list a second member, or evaluate the member as a system",
        _too_few,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, !has(s.source) || self.sources.exists(x, x.name == s.source))",
        "there is no source of this name; correct it or add the source",
        _unknown_sources,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, !has(s.source) || {_SYSTEMS}.exists_one(x, has(x.source) && x.source == s.source))",
        "another system is this source; remove one of them",
        _sources_twice,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, (has(s.source) && s.source == s.name) || !self.sources.exists(x, x.name == s.name))",
        "a source has this name; choose another name for the system, or set source to it",
        _named_as_sources,
    ),
    _NameRule(
        f"size({_SYSTEMS}) == 0 || self.sources.all(x, !x.name.contains('{SEPARATOR}')"
        f" && x.name != '{SFT_SYSTEM}' && x.name != '{TRAINED_SYSTEM}')",
        "with evaluation.systems a source's name is part of stage names; it must not be `sft` or `trained`, nor "
        "contain two dashes in a row; rename the source",
        _ambiguous_sources,
    ),
    _NameRule(
        f"{_BENCHMARKS}.all(b, !has(b.baseline) || {_MODEL.format('b.baseline')}"
        f" || {_SYSTEMS}.exists(x, x.name == b.baseline))",
        "the baseline is a model or a system: target, sft, trained, the name of a source or of a system; correct it or "
        "add that system",
        _unknown_baselines,
    ),
    _NameRule(
        f"{_JUDGES}.all(j, j.benchmarks.all(n, (n == '{HELD_OUT}' && has(j.reward))"
        f" || {_BENCHMARKS}.exists(b, b.name == n)))",
        "a judge reads listed benchmarks, and a reward also held-out; correct the name or add that benchmark",
        _unknown_benchmarks,
    ),
    _NameRule(
        f"{_BENCHMARKS}.all(b, {_JUDGES}.exists(j, (size(j.benchmarks) == 0 || b.name in j.benchmarks) && {_JUDGED}))",
        "no judge reads the answers to this benchmark; add a judge for it, and set protocol if its kind is Custom and "
        "the judge is no reward",
        _unjudged,
    ),
    _NameRule(
        f"{_SYSTEMS}.all(s, !has(s.select) || !has(s.select.reward) || {_REWARD.format('s.select.reward')})"
        f" && {_JUDGES}.all(j, !has(j.serveReward) || {_REWARD.format('j.serveReward')})"
        + "".join(
            f" && {_SYSTEMS}.all(s, !{has} || !has({path}.search) || !has({path}.search.reward)"
            f" || {_REWARD.format(f'{path}.search.reward')})"
            for has, path in (("has(s.merge)", "s.merge"), (_PAIRWISE, "s.fuse.merge"))
        ),
        "there is no reward of this name; rewards are main, reward.additional, and judges with a reward; correct it or "
        "add the reward",
        _unknown_rewards,
    ),
    _NameRule(
        _of_objectives(f"{_BENCHMARKS}.exists(b, b.name == {{0}}.benchmark && has(b.development) && !has(b.baseline))"),
        "a search sees development items of a benchmark and compares them with the baseline of the bundle; name a "
        "benchmark that has development and no baseline",
        _undeveloped_benchmarks,
    ),
    _NameRule(
        f"{_BENCHMARKS}.all(a, !has(a.development) || {_BENCHMARKS}.all(b,"
        " (has(b.bundle) ? b.bundle : b.kind) != (has(a.bundle) ? a.bundle : a.kind)"
        " || (has(b.development) && b.development == a.development"
        " && (has(b.limit) ? b.limit : 0) == (has(a.limit) ? a.limit : 0))))",
        "another benchmark has the same bundle, and one of them evaluates items that the other one sets aside; give "
        "both the same development and limit, or another bundle",
        _evaluated_elsewhere,
    ),
    _NameRule(
        _of_objectives(
            f"{_JUDGES}.exists(j, j.name == {{0}}.judge && !has(j.reward) && !has(j.serve)"
            f" && (size(j.benchmarks) == 0 || {{0}}.benchmark in j.benchmarks))"
            f" && {_BENCHMARKS}.all(b, b.name != {{0}}.benchmark || b.kind != 'Custom' || has(b.protocol))"
        ),
        "a search asks a judge with endpoint or serveReward that reads the benchmark, whose kind Custom needs "
        "protocol; name such a judge, or set search.reward to a judge with a reward",
        _unusable_judges,
    ),
    _NameRule(
        f"{_JUDGES}.all(j, !self.reward.additional.exists(x, x.name == j.name))",
        "an additional reward has this name; choose another name for the judge",
        _named_as_rewards,
    ),
)


def evaluation_errors(spec: ExperimentSpec) -> Iterator[str]:
    """Yield an error for each name in spec.evaluation, or of a fused source, that refers to nothing or is ambiguous."""
    for rule in _NAME_RULES:
        for path, value in rule.find(spec):
            yield f"{path} is {value}: {rule.message}."


def name_rules() -> tuple[Rule, ...]:
    """Return the rules about these names, which are rules of the whole spec."""
    return tuple(Rule((ExperimentSpec,), rule.cel, rule.message, None) for rule in _NAME_RULES)
