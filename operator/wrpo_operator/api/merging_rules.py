"""Rules between the fields of one merge, or of one group of models that choose each token together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wrpo_operator.api.merging import Joint, Merge
from wrpo_operator.api.rule import Rule

_DARE = ("DARE-Linear", "DARE-TIES")
_SPARSE = ("TIES", *_DARE)
_WEIGHTED = ("Linear", "TaskArithmetic", *_SPARSE)
_OWN_SETTINGS: tuple[tuple[type[Merge | Joint], str, tuple[str, ...]], ...] = (
    (Merge, "weight", _WEIGHTED),
    (Merge, "normalize", _WEIGHTED),
    (Merge, "density", _SPARSE),
    (Merge, "scale", ("TaskArithmetic", *_SPARSE)),
    (Merge, "position", ("SLERP",)),
    (Merge, "select_top_k", ("SCE",)),
    (Merge, "rescale", _DARE),
    (Merge, "seed", _DARE),
    (Joint, "temperature", ("PackSim",)),
    (Joint, "agreement", ("EVA",)),
    (Joint, "top_k", ("EVA",)),
    (Joint, "neighbours", ("EVA",)),
    (Joint, "threshold", ("EVA",)),
    (Joint, "embeddings", ("EVA",)),
)
"""Section, its field, and the methods that read it."""


def _literal(value: Any) -> str:
    """Return a default as CEL writes it."""
    return repr(list(value) if isinstance(value, tuple) else value)


def _own_setting(section: type[Merge | Joint], name: str, methods: tuple[str, ...]) -> Rule:
    """Refuse a setting with the methods that do not read it."""
    field = section.model_fields[name]
    default, alias = field.default, field.alias
    is_default = f"!has(self.{alias})" if default is None else f"self.{alias} == {_literal(default)}"
    return Rule(
        (section,),
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
        (Merge,),
        "self.method != 'Linear' || (has(self.normalize) && !self.normalize) || self.weights.all(w, w > 0.0)",
        "Linear divides by the sum of the weights, so each of them must be greater than 0; correct weights, or set "
        "normalize to false",
        lambda m: m.method != "Linear" or not m.divides_by_weights or min(m.weight) > 0,
    )


def _unique(section: type[Merge | Joint], field: str) -> Rule:
    return Rule(
        (section,),
        f"self.{field}.all(a, self.{field}.exists_one(b, b == a))",
        f"{field} names one twice; remove one of them",
        lambda m: len(set(getattr(m, field))) == len(getattr(m, field)),
    )


MERGING_RULES: tuple[Rule, ...] = tuple(_rules())
