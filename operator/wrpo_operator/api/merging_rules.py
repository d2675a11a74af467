"""Rules of merges, and of one group of models that choose each token together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from wrpo_engine.contract.merging import SEARCHED_METHODS
from wrpo_operator.api.merging import FusedMerge, Joint, Merge, Search
from wrpo_operator.api.rule import Rule
from wrpo_operator.api.spec import ExperimentSpec

_DARE = ("DARE-Linear", "DARE-TIES")
_SPARSE = ("TIES", *_DARE)
_WEIGHTED = ("Linear", "TaskArithmetic", *_SPARSE)
_SEED: int = Merge.model_fields["seed"].default
_MERGES = (Merge, FusedMerge)
_Sections: TypeAlias = tuple[type[Merge | FusedMerge | Joint], ...]
_OWN_SETTINGS: tuple[tuple[_Sections, str, tuple[str, ...]], ...] = (
    (_MERGES, "weight", _WEIGHTED),
    (_MERGES, "normalize", _WEIGHTED),
    (_MERGES, "density", _SPARSE),
    (_MERGES, "scale", ("TaskArithmetic", *_SPARSE)),
    (_MERGES, "position", ("SLERP",)),
    (_MERGES, "select_top_k", ("SCE",)),
    (_MERGES, "rescale", _DARE),
    (_MERGES, "search", SEARCHED_METHODS),
    ((Joint,), "temperature", ("PackSim",)),
    ((Joint,), "agreement", ("EVA",)),
    ((Joint,), "top_k", ("EVA",)),
    ((Joint,), "neighbours", ("EVA",)),
    ((Joint,), "threshold", ("EVA",)),
    ((Joint,), "embeddings", ("EVA",)),
)
"""Sections, their field, and the methods that read it."""
_SEARCHES = (
    "self.evaluation.systems.exists(s,"
    " (has(s.merge) && has(s.merge.search) && !has(s.merge.search.objective))"
    " || (has(s.fuse) && has(s.fuse.merge) && has(s.fuse.merge.search) && !has(s.fuse.merge.search.objective)))"
)
"""CEL: a search maximises a reward."""


def _literal(value: Any) -> str:
    """Return a default as CEL writes it."""
    return repr(list(value) if isinstance(value, tuple) else value)


def _own_setting(sections: _Sections, name: str, methods: tuple[str, ...]) -> Rule:
    """Refuse a setting with the methods that do not read it."""
    field = sections[0].model_fields[name]
    default, alias = field.default, field.alias
    is_default = f"!has(self.{alias})" if default is None else f"self.{alias} == {_literal(default)}"
    return Rule(
        sections,
        f"{is_default} || self.method in {list(methods)}",
        f"{alias} has no effect on this method, because only {', '.join(methods)} read it; remove {alias} or choose "
        "another method",
        lambda m: getattr(m, name) == default or m.method in methods,
    )


def _rules() -> Iterator[Rule]:
    yield from (_own_setting(*setting) for setting in _OWN_SETTINGS)
    for section, field in ((Merge, "models"), (Joint, "members")):
        yield _unique(section, field)
    yield Rule(
        (Merge,),
        "!has(self.base) || self.method != 'SLERP'",
        "SLERP takes two models and no base; list both in models and remove base",
        lambda m: m.base is None or m.method != "SLERP",
    )
    yield Rule(
        _MERGES,
        f"self.seed == {_SEED} || has(self.search) || self.method in {list(_DARE)}",
        f"seed has no effect on this method, because only {', '.join(_DARE)} and a search read it; remove seed or "
        "choose another method",
        lambda m: m.seed == _SEED or m.search is not None or m.method in _DARE,
    )
    yield Rule(
        _MERGES,
        "self.method != 'Linear' || (has(self.normalize) && !self.normalize) || self.weights.all(w, w > 0.0)",
        "Linear divides by the sum of the weights, so each of them must be greater than 0; correct weights, or set "
        "normalize to false",
        lambda m: m.method != "Linear" or not m.divides_by_weights or min(m.weight) > 0,
    )
    yield Rule(
        (Search,),
        "!has(self.reward) || !has(self.objective)",
        "a search maximises one measure, reward or the score of objective; remove one of them",
        lambda m: m.reward is None or m.objective is None,
    )
    yield Rule(
        (ExperimentSpec,),
        f"self.prompts.sftFraction < 1.0 || !{_SEARCHES}",
        "a search of merge weights by a reward answers preference prompts, and sftFraction 1 leaves none; lower "
        "prompts.sftFraction, set search.objective or remove search",
        lambda m: m.prompts.sft_fraction < 1 or not _searches(m),
    )


def _unique(section: type[Merge | Joint], field: str) -> Rule:
    return Rule(
        (section,),
        f"self.{field}.all(a, self.{field}.exists_one(b, b == a))",
        f"{field} names one twice; remove one of them",
        lambda m: len(set(getattr(m, field))) == len(getattr(m, field)),
    )


def _searches(spec: ExperimentSpec) -> bool:
    merges = (system.merging for system in spec.evaluation.systems)
    searches = (merge.search for merge in merges if merge is not None)
    return any(search is not None and search.objective is None for search in searches)


MERGING_RULES: tuple[Rule, ...] = tuple(_rules())
