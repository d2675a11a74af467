"""Expansion of a sweep: its variants and seeds as specs of experiments. Pure."""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_operator.api import names, sweep_messages
from wrpo_operator.api.hashing import canonical_json, digest
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.api.pod_template import STRICT, PodTemplatePolicy
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.sweep import (
    MAX_EXPERIMENTS,
    MAX_VARIANT_NAME,
    MAX_VARIANTS,
    PLACEHOLDER,
    VARIANT_PATTERN,
    Grid,
    SourcesBy,
    SweepSpec,
    VariantFields,
)
from wrpo_operator.api.sweep_status import SourceOrder
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.plan.model import StageId
from wrpo_operator.plan.sweep_patch import PatchError, Raw, apply_patch

_ADDED = ("systems", "benchmarks", "judges")
_BOOLEANS = {"n": "false", "no": "false", "off": "false", "y": "true", "yes": "true", "on": "true"}
"""What YAML 1.1 reads as a boolean, and the key that JSON has for it."""
MAX_ERRORS = 16


@dataclass(frozen=True, slots=True)
class NamedVariant:
    """A variant of the list or of a grid, with its parameters inserted."""

    name: str
    set: Mapping[str, Any]
    unset: tuple[str, ...]
    sources: tuple[str, ...] | None
    """None: all, or as `by` says."""
    by: SourcesBy | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One experiment that a sweep wants."""

    name: str
    variant: str
    seed: int | None
    spec: Raw
    """Spec of the experiment, without suspend."""
    digest: str


@dataclass(frozen=True, slots=True)
class Row:
    """One variant with its experiments."""

    name: str
    sources: int
    experiments: tuple[Wanted, ...]
    """Empty while its sources are not decided: their order follows from scores."""
    number: int
    """Number of experiments once they are decided."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of all sources that the order by mean reward follows from."""

    key: str
    hashes: Mapping[str, str]
    """Source -> hash of the stage that scores it."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """All rows of a sweep, or the reasons why it cannot be accepted."""

    rows: tuple[Row, ...] = ()
    errors: tuple[str, ...] = ()
    scores: Scores | None = None
    """Set if a variant needs the order by mean reward."""


def expand(
    name: str, raw: Mapping[str, Any], spec: SweepSpec, order: SourceOrder | None, policy: PodTemplatePolicy = STRICT
) -> Expansion:
    """Return the experiments of the sweep `name`. `raw` is its spec as stored, `spec` the same parsed.

    `order` is the recorded order of sources by mean reward; one that follows from other scores does not count.
    """
    try:
        variants = named_variants(spec)
    except PatchError as error:
        return Expansion(errors=(str(error),))
    base = _with_added(raw["experiment"], raw)
    listed = [source.name for source in spec.experiment.sources]
    scores = _scores(spec) if any(_needs_order(variant, listed) for variant in variants) else None
    ranked = order.sources if order is not None and scores is not None and order.key == scores.key else None
    rows, errors, parsed = list[Row](), list[str](), dict[str, ExperimentSpec]()
    for variant in variants:
        try:
            chosen = _chosen(variant, listed, ranked)
            # Whether the spec is valid does not depend on which sources a number of them are.
            patched = _patched(base, variant, chosen or listed[: _number(variant, listed)])
            parsed[variant.name] = parse_spec(patched, policy)
        except PatchError as error:
            errors.append(sweep_messages.bad_variant(variant.name, str(error)))
        except SpecError as error:
            errors += [sweep_messages.bad_variant(variant.name, text) for text in error.errors]
        else:
            valid = parsed[variant.name]
            wanted = () if chosen is None else _experiments(name, spec, variant.name, patched, valid)
            rows.append(Row(variant.name, len(valid.sources), wanted, len(_seeds(spec))))
    errors += _sweep_faults(spec, variants, parsed, scores)
    if errors:
        more = len(errors) - MAX_ERRORS
        shown = errors[:MAX_ERRORS] + ([sweep_messages.more_errors(more)] if more > 0 else [])
        return Expansion(errors=tuple(shown))
    return Expansion(rows=tuple(rows), scores=scores)


# Names and grids


def named_variants(spec: SweepSpec) -> tuple[NamedVariant, ...]:
    """Return the variants of the list, then those of the grids; PatchError for names that are not unique or too many.

    The API server stores maps without an order, so parameters vary in alphabetical order, the last one first.
    """
    found = [NamedVariant(item.name, item.set, item.unset, item.sources, item.sources_by) for item in spec.variants]
    for grid in spec.grid:
        values = _values(grid)
        if len(found) + _product(values) > MAX_VARIANTS:
            raise PatchError(sweep_messages.too_many("variants", len(found) + _product(values), MAX_VARIANTS))
        combinations = itertools.product(*values.values())
        found += [_of_grid(grid.name, grid, dict(zip(values, each, strict=True))) for each in combinations]
    per_variant = max(1, len(spec.seeds))
    if len(found) * per_variant > MAX_EXPERIMENTS:
        raise PatchError(sweep_messages.too_many("experiments", len(found) * per_variant, MAX_EXPERIMENTS))
    counts: dict[str, int] = {}
    for variant in found:
        counts[variant.name] = counts.get(variant.name, 0) + 1
    doubled = sorted(name for name, count in counts.items() if count > 1)
    if doubled:
        raise PatchError(sweep_messages.same_names(doubled))
    if spec.report.baseline is not None and spec.report.baseline not in counts:
        raise PatchError(sweep_messages.no_baseline(spec.report.baseline, sorted(counts)))
    return tuple(found)


def _product(values: Mapping[str, Sequence[Any]]) -> int:
    total = 1
    for each in values.values():
        total *= len(each)
    return total


def _values(grid: Grid) -> dict[str, list[Any]]:
    """Return the values of a grid's parameters."""
    over = _readable(grid)
    if not over:
        raise PatchError(sweep_messages.bad_grid(grid.name, "for is empty; add a parameter and its values"))
    for key, values in over.items():
        if not PLACEHOLDER.fullmatch(f"{{{key}}}"):
            raise PatchError(sweep_messages.bad_grid(grid.name, f"the parameter {key!r} must be letters and digits"))
        if not isinstance(values, list) or not values or any(isinstance(value, dict | list) for value in values):
            fault = f"for.{key} must be a list of numbers or texts, e.g. [1, 2]"
            raise PatchError(sweep_messages.bad_grid(grid.name, fault))
    unknown = sorted(_placeholders(grid) - set(over))
    if unknown:
        raise PatchError(
            sweep_messages.bad_grid(grid.name, f"for has no parameter {unknown[0]}; add it and its values")
        )
    return {key: list(over[key]) for key in sorted(over)}


def _placeholders(grid: Grid) -> set[str]:
    """Return the parameters that a grid uses."""
    by = () if grid.sources_by is None else (grid.sources_by.first, grid.sources_by.draw)
    return set(PLACEHOLDER.findall(f"{grid.name} {canonical_json(grid.set)} {by}"))


def _readable(grid: Grid) -> dict[str, Any]:
    """Return `for` with the parameters that kubectl's YAML reads as booleans under the names that the grid uses: an
    unquoted n is false, and y is true.
    """
    over = dict(grid.over)
    for name in sorted(_placeholders(grid) - over.keys()):
        read = _BOOLEANS.get(name.lower())
        if read in over:
            over[name] = over.pop(read)
    return over


def _of_grid(template: str, grid: VariantFields, parameters: Mapping[str, Any]) -> NamedVariant:
    name = re.sub(r"[^a-z0-9.-]", "-", str(_filled(template, parameters, whole=False)).lower())
    if len(name) > MAX_VARIANT_NAME or not re.fullmatch(VARIANT_PATTERN, name):
        raise PatchError(
            sweep_messages.bad_grid(template, f"{name!r} is no name of at most {MAX_VARIANT_NAME} characters")
        )
    by = grid.sources_by
    try:
        if by is not None:
            filled = {key: _filled(value, parameters) for key, value in (("first", by.first), ("draw", by.draw))}
            by = SourcesBy(order=by.order, **filled)
        return NamedVariant(name, _filled(grid.set, parameters), grid.unset, grid.sources, by)
    except ValueError as error:
        raise PatchError(sweep_messages.bad_grid(template, "sourcesBy needs whole numbers")) from error


def _filled(value: Any, parameters: Mapping[str, Any], *, whole: bool = True) -> Any:
    """Insert parameters; a text that is one placeholder becomes the value itself, with its type, if `whole`."""
    if isinstance(value, Mapping):
        return {key: _filled(item, parameters) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, parameters) for item in value]
    if not isinstance(value, str):
        return value
    match = PLACEHOLDER.fullmatch(value)
    if match and whole:
        return parameters[match[1]]
    return PLACEHOLDER.sub(lambda found: _text(parameters[found[1]]), value)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# Sources


def _needs_order(variant: NamedVariant, listed: Sequence[str]) -> bool:
    return variant.by is not None and variant.by.order == "MeanReward" and variant.by.first != len(listed)


def _number(variant: NamedVariant, listed: Sequence[str]) -> int:
    return len(listed) if variant.by is None else int(variant.by.first)


def _chosen(variant: NamedVariant, listed: Sequence[str], ranked: Sequence[str] | None) -> list[str] | None:
    """Return the sources of a variant; None while their order is not known. PatchError if there are not as many."""
    if variant.sources is not None:
        unknown = [name for name in variant.sources if name not in listed]
        if unknown:
            raise PatchError(sweep_messages.no_source(unknown[0], listed))
        return [name for name in listed if name in variant.sources]
    if variant.by is None:
        return list(listed)
    if isinstance(variant.by.first, str) or isinstance(variant.by.draw, str):
        raise PatchError(sweep_messages.placeholder_outside_grid())
    if not 1 <= variant.by.first <= len(listed):
        raise PatchError(sweep_messages.bad_number_of_sources(variant.by.first, len(listed)))
    if not _needs_order(variant, listed):
        order: Sequence[str] | None = listed
        if variant.by.order == "Random":
            order = sorted(listed, key=lambda name: _lot(variant.by.draw if variant.by else 0, name))
    else:
        order = ranked
    if order is None:
        return None
    # In the order of the spec, because the order of sources is no difference between experiments.
    kept = set(order[: variant.by.first])
    return [name for name in listed if name in kept]


def _lot(draw: int | str, name: str) -> str:
    """Return the place of a source in a random order, which depends on nothing but the draw and the names."""
    return hashlib.sha256(f"{draw}/{name}".encode()).hexdigest()


def _scores(spec: SweepSpec) -> Scores:
    hashes = score_hashes(spec.experiment)
    return Scores(digest(hashes), hashes)


def score_hashes(spec: ExperimentSpec) -> dict[str, str]:
    """Return the hash of the stage that scores each source by the first reward."""
    wanted = {StageId("score", source.name): source.name for source in spec.sources}
    return {wanted[node.id]: node.hash for node in build_graph(spec) if node.id in wanted}


def source_order(scores: Scores, means: Mapping[str, float], lost: Iterable[str]) -> SourceOrder | None:
    """Return the order by mean reward, best first; None until every source has a mean or is lost. Ties: by name."""
    gone = set(lost) - means.keys()
    if not scores.hashes.keys() <= means.keys() | gone:
        return None
    ranked = sorted(scores.hashes, key=lambda name: (name in gone, -means.get(name, 0.0), name))
    return SourceOrder(key=scores.key, sources=tuple(ranked), means={n: means[n] for n in ranked if n in means})


# Patches


def _with_added(experiment: Mapping[str, Any], raw: Mapping[str, Any]) -> Raw:
    """Return the common experiment with the sweep's systems, benchmarks and judges in its evaluation."""
    base = copy.deepcopy(dict(experiment))
    base.pop("suspend", None)
    for field in _ADDED:
        if raw.get(field):
            evaluation = base.setdefault("evaluation", {})
            evaluation[field] = [*evaluation.get(field, ()), *copy.deepcopy(raw[field])]
    return base


def _patched(base: Raw, variant: NamedVariant, sources: Sequence[str]) -> Raw:
    spec = copy.deepcopy(base)
    if len(sources) < len(spec["sources"]):
        spec["sources"] = [source for source in spec["sources"] if source["name"] in sources]
    for path, value in _changes(variant):
        apply_patch(spec, path, value)
    return spec


def _changes(variant: NamedVariant) -> list[tuple[str, Any]]:
    """Return paths with their values by path, None for a removal; PatchError for paths that exclude each other."""
    for path, value in variant.set.items():
        if _has_null(value):
            raise PatchError(sweep_messages.null_value(path))
        if path in variant.unset:
            raise PatchError(sweep_messages.set_and_unset(path))
    found = sorted({**variant.set, **dict.fromkeys(variant.unset)}.items())
    for (outer, _), (inner, _) in itertools.combinations(found, 2):
        if inner.startswith((f"{outer}.", f"{outer}[")):
            raise PatchError(sweep_messages.overlapping(outer, inner))
    return found


def _has_null(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(_has_null, parts))


# Experiments


def _seeds(spec: SweepSpec) -> Sequence[int | None]:
    return spec.seeds or (None,)


def _experiments(sweep: str, spec: SweepSpec, variant: str, patched: Raw, parsed: ExperimentSpec) -> tuple[Wanted, ...]:
    """Return the experiments of a variant, one for each seed. `patched` is their spec, `parsed` the same parsed."""
    share = _share(spec)
    wanted = []
    for seed in _seeds(spec):
        own = copy.deepcopy(patched)
        if seed is not None:
            own.setdefault("training", {})["seed"] = seed
        if seed is not None and spec.per_seed:
            own.setdefault("sampling", {})["seed"] = seed
        if share is not None:
            most = parsed.scheduling.max_gpus
            own.setdefault("scheduling", {})["maxGpus"] = share if most is None else min(share, most)
        wanted.append(Wanted(names.member_name(sweep, variant, seed), variant, seed, own, digest(own)))
    return tuple(wanted)


def _share(spec: SweepSpec) -> int | None:
    """Return the accelerators of each experiment; None: unlimited."""
    if spec.max_gpus is None:
        return None
    return max(1, spec.max_gpus // (spec.parallel_experiments or 1))


def _sweep_faults(
    spec: SweepSpec, variants: Sequence[NamedVariant], parsed: Mapping[str, ExperimentSpec], scores: Scores | None
) -> Iterator[str]:
    if not spec.allow_unlike_prompts:
        yield from _unlike_prompts(parsed)
    if scores is None or len(parsed) < len(variants):
        return
    listed = list(scores.hashes)
    missing = dict(scores.hashes)
    for variant in variants:
        if missing and not _needs_order(variant, listed):
            known = score_hashes(parsed[variant.name])
            missing = {name: key for name, key in missing.items() if known.get(name) != key}
    if missing:
        yield sweep_messages.unscored(sorted(missing))


def _unlike_prompts(parsed: Mapping[str, ExperimentSpec]) -> Iterator[str]:
    """Yield a fault for each variant whose prompts differ from those of the first one.

    The share of SFT may differ: it splits the training prompts, and the held-out ones stay the same.
    """
    first: tuple[str, Any] | None = None
    for name, spec in parsed.items():
        prompts = spec.prompts.model_copy(update={"sft_fraction": 0.0})
        if first is None:
            first = (name, prompts)
        elif prompts != first[1]:
            fields = [
                info.alias or field
                for field, info in type(prompts).model_fields.items()
                if getattr(prompts, field) != getattr(first[1], field)
            ]
            yield sweep_messages.unlike_prompts(name, first[0], fields)
