"""Fields of a WRPOSweep's spec: one common experiment, and the variants that become separate experiments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from wrpo_operator.api.base import FreeObject, SpecModel, list_map
from wrpo_operator.api.names import MAX_SOURCE_NAME, SWEEP_PLURAL
from wrpo_operator.api.parsing import SpecError, parse_structure
from wrpo_operator.api.spec import ExperimentSpec

MAX_VARIANTS = 512
"""Of the list and the grids together."""
MAX_EXPERIMENTS = 1024
"""Variants times seeds."""
MAX_VARIANT_NAME = 40
VARIANT_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
TEMPLATE_PATTERN = r"^[a-z0-9{]([A-Za-z0-9.{}-]*[a-z0-9}])?$"
PLACEHOLDER = re.compile(r"\{([A-Za-z][A-Za-z0-9]*)\}")
_WHOLE_PATTERN = r"^\{[A-Za-z][A-Za-z0-9]*\}$"

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
SourceName = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_NAME)]
FreeObjects = Annotated[
    tuple[Any, ...],
    Field(max_length=64),
    WithJsonSchema({"type": "array", "maxItems": 64, "items": {"x-kubernetes-preserve-unknown-fields": True}}),
]


def _count(value: Any) -> int | str:
    """Validate a number, or a placeholder of a grid, in one step and with one error."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_EXPERIMENTS:
        return value
    if isinstance(value, str) and len(value) <= 32 and re.fullmatch(_WHOLE_PATTERN, value):
        return value
    raise ValueError(f"write a whole number from 0 to {MAX_EXPERIMENTS}, or in a grid the name of a parameter: '{{n}}'")


Count = Annotated[
    int | str,
    PlainValidator(_count),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": _WHOLE_PATTERN,
            "maxLength": 32,
        }
    ),
]


FieldPath = Annotated[str, Field(min_length=1, max_length=256)]


class SourcesBy(SpecModel):
    """The first sources of an order. The order is recorded in status.sourceOrder or follows from the spec."""

    order: Literal["Listed", "Random", "MeanReward"] = "Listed"
    """Listed: as in spec.experiment.sources. Random: a random order for each draw. MeanReward: by the mean score of
    each source's responses, best first; the variants wait until other variants have scored all sources."""
    first: Count
    """Number of sources. Subsets of one order are nested: the first two contain the first one."""
    draw: Count = 0
    """Number of the random order; order Random only."""


class VariantFields(SpecModel):
    """Differences of a variant from the common experiment."""

    set: FreeObject = Field(default={})
    """Field of the experiment, by its path below spec, e.g. training.alpha or sources[NAME].shards, to its value. The
    value replaces that of the common experiment. null is refused, because kubectl apply drops it; use unset."""
    unset: tuple[FieldPath, ...] = Field(default=(), max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"})
    """Paths of fields that are removed from the common experiment, so that their defaults apply."""
    sources: tuple[SourceName, ...] | None = Field(default=None, min_length=1, max_length=32)
    """Names of the sources that the variant uses, of those in spec.experiment.sources. Unset: all."""
    sources_by: SourcesBy | None = None
    """Choice of the sources by an order instead of by name."""


class Variant(VariantFields):
    """One row of the comparison: the common experiment with some fields changed."""

    name: str = Field(min_length=1, max_length=MAX_VARIANT_NAME, pattern=VARIANT_PATTERN)
    """Unique name: lower case letters, digits, dashes and dots. Part of the names of its experiments."""


class Grid(VariantFields):
    """Variants for all combinations of some parameters. Texts of set that consist of a placeholder such as '{n}' become
    the parameter's value; placeholders within a text are replaced in it.
    """

    name: str = Field(min_length=1, max_length=63, pattern=TEMPLATE_PATTERN)
    """Name of the variants, with every parameter in it, e.g. sources-{n}."""
    over: FreeObject = Field(alias="for")
    """Parameter to the list of its values, e.g. {n: [1, 2, 5, 10]}."""


class SweepReport(SpecModel):
    """Presentation of the results."""

    baseline: str | None = Field(default=None, min_length=1, max_length=MAX_VARIANT_NAME)
    """Variant from which differences are taken."""


class SweepSpec(SpecModel):
    """Desired sweep. It can be edited at any time; an edit re-runs only the stages that it concerns."""

    experiment: ExperimentSpec
    """The common part: the spec of a WRPOExperiment."""
    seeds: tuple[Seed, ...] = Field(default=(), max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"})
    """Training seeds (training.seed); each variant runs once with each. Empty: the seed of the common experiment."""
    per_seed: tuple[Literal["Sampling"], ...] = Field(
        default=(), max_length=1, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """What the seeds change besides training. Sampling: sampling.seed too, so that every seed has its own responses and
    scores. Empty: all seeds share them."""
    variants: tuple[Variant, ...] = Field(default=(), max_length=MAX_VARIANTS, json_schema_extra=list_map("name"))
    """The variants, with unique names. One experiment for each variant and seed."""
    grid: tuple[Grid, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("name"))
    """Further variants, as combinations of parameters. At most 512 variants and 1024 experiments in all."""
    systems: FreeObjects = ()
    """Further systems of the comparison, appended to evaluation.systems of every variant."""
    benchmarks: FreeObjects = ()
    """Benchmarks, appended to evaluation.benchmarks of every variant."""
    judges: FreeObjects = ()
    """Judges, appended to evaluation.judges of every variant."""
    parallel_experiments: int | None = Field(default=None, ge=1, le=MAX_EXPERIMENTS)
    """Maximum number of experiments that run at the same time. Unset: all."""
    max_gpus: int | None = Field(default=None, ge=1, le=1048576)
    """Maximum number of accelerators that all experiments together request at the same time. Every experiment gets an
    equal share as its scheduling.maxGpus: this number divided by the experiments that may run at the same time."""
    allow_unlike_prompts: bool = False
    """True: variants may differ in prompts (other than prompts.sftFraction), so that their rows are not comparable."""
    suspend: bool = False
    """True: suspend all experiments and create none. False: resume."""
    report: SweepReport = SweepReport()
    """Presentation of the results."""


@dataclass(frozen=True, slots=True)
class SweepRule:
    """A rule between fields of a sweep, in CEL for the API server and in Python for the operator and `wrpo sweep`."""

    cel: str
    message: str
    check: Callable[[SweepSpec], bool]


def _parts(spec: SweepSpec) -> tuple[VariantFields, ...]:
    return (*spec.variants, *spec.grid)


SWEEP_RULES = (
    SweepRule(
        "(has(self.variants) && size(self.variants) > 0) || (has(self.grid) && size(self.grid) > 0)",
        "variants and grid are both empty, so there is nothing to run; add a variant",
        lambda spec: bool(_parts(spec)),
    ),
    SweepRule(
        "!has(self.maxGpus) || has(self.parallelExperiments)",
        "maxGpus is divided among the experiments that run at the same time; set parallelExperiments too",
        lambda spec: spec.max_gpus is None or spec.parallel_experiments is not None,
    ),
    SweepRule(
        "!has(self.maxGpus) || !has(self.parallelExperiments) || self.maxGpus >= self.parallelExperiments",
        "maxGpus is below parallelExperiments, so that an experiment could get no accelerator; raise maxGpus",
        lambda spec: spec.max_gpus is None or spec.max_gpus >= (spec.parallel_experiments or 1),
    ),
    SweepRule(
        "!self.experiment.suspend",
        "experiment.suspend would suspend every new experiment; use suspend of the sweep",
        lambda spec: not spec.experiment.suspend,
    ),
    SweepRule(
        "(!has(self.variants) || self.variants.all(v, !has(v.sources) || !has(v.sourcesBy))) &&"
        " (!has(self.grid) || self.grid.all(g, !has(g.sources) || !has(g.sourcesBy)))",
        "sources and sourcesBy of a variant exclude each other; keep one",
        lambda spec: all(part.sources is None or part.sources_by is None for part in _parts(spec)),
    ),
)


def parse_sweep(raw: Mapping[str, Any]) -> SweepSpec:
    """Parse a sweep's spec as the API server does: structure, unique names, then the rules between its fields.

    Whether each variant is a valid experiment is decided by `plan.sweep_expand`. Raises SpecError.
    """
    spec = parse_structure(SweepSpec, raw, SWEEP_PLURAL)
    errors = tuple(f"spec: {rule.message}." for rule in SWEEP_RULES if not rule.check(spec))
    errors += _doubled("spec.seeds", "value", spec.seeds)
    errors += _doubled("spec.variants", "name", [variant.name for variant in spec.variants])
    errors += _doubled("spec.grid", "name", [grid.name for grid in spec.grid])
    if errors:
        raise SpecError(errors)
    return spec


def _doubled(path: str, what: str, found: Any) -> tuple[str, ...]:
    found = list(found)
    doubled = sorted({item for item in found if found.count(item) > 1})
    return tuple(f"{path}: {what} `{item}` is used more than once; it must be unique." for item in doubled)
