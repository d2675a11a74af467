"""What a sweep will do: the stages of all experiments, those that are shared, and GPU hours. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.sweep import SweepSpec
from wrpo_operator.api.sweep_status import SourceOrder
from wrpo_operator.cli.forecast import forecast
from wrpo_operator.cli.forecast_inputs import Assumed
from wrpo_operator.plan.sweep_expand import Expansion, expand
from wrpo_operator.sizing.inventory import Inventory


@dataclass(frozen=True, slots=True, kw_only=True)
class KindLine:
    """Stages of one kind."""

    kind: str
    needed: int
    """By all experiments together."""
    run: int
    """Distinct ones, which run once."""
    gpu_hours: float | None
    """Of those that run; None if nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantLine:
    """One variant over all seeds."""

    variant: str
    experiments: tuple[str, ...]
    sources: int
    own: tuple[str, ...]
    """Stages that no variant before it needs."""
    gpu_hours: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepForecast:
    """A whole sweep."""

    variants: tuple[VariantLine, ...]
    kinds: tuple[KindLine, ...]
    is_order_assumed: bool
    """Whether the order of the list is assumed for sources by mean reward."""

    @property
    def needed(self) -> int:
        """Number of stages of all experiments together."""
        return sum(line.needed for line in self.kinds)

    @property
    def run(self) -> int:
        """Number of distinct stages."""
        return sum(line.run for line in self.kinds)

    @property
    def gpu_hours(self) -> float | None:
        """GPU hours of all stages whose time is known; None if there is none."""
        known = [line.gpu_hours for line in self.kinds if line.gpu_hours is not None]
        return sum(known) if known else None


def expanded(name: str, raw: Mapping[str, object], spec: SweepSpec) -> tuple[Expansion, bool]:
    """Return the experiments of a sweep, and whether the order of the list was assumed for that by mean reward."""
    found = expand(name, raw, spec, None)
    if found.scores is None:
        return found, False
    listed = tuple(source.name for source in spec.experiment.sources)
    return expand(name, raw, spec, SourceOrder(key=found.scores.key, sources=listed)), True


def forecast_sweep(
    found: Expansion,
    inventory: Inventory | None,
    assumed: Assumed,
    *,
    is_order_assumed: bool,
) -> SweepForecast:
    """Return what the experiments will do in the order of the spec, each after the others have finished theirs."""
    done = set[str]()
    needed, run = Counter[str](), Counter[str]()
    hours: dict[str, list[float]] = {}
    variants = list[VariantLine]()
    for row in found.rows:
        own, spent = list[str](), list[float]()
        for wanted in row.experiments:
            result = forecast(parse_spec(wanted.spec), inventory, assumed, frozenset(done))
            for line in result.lines:
                kind, address = line.stage.partition("/")[0], f"{line.stage}/{line.hash}"
                needed[kind] += 1
                if address in done:
                    continue
                done.add(address)
                own.append(line.stage)
                run[kind] += 1
                if line.gpu_hours is not None:
                    hours.setdefault(kind, []).append(line.gpu_hours)
                    spent.append(line.gpu_hours)
        variants.append(
            VariantLine(
                variant=row.name,
                experiments=tuple(wanted.name for wanted in row.experiments),
                sources=row.sources,
                own=tuple(own),
                gpu_hours=sum(spent) if spent else None,
            )
        )
    kinds = tuple(
        KindLine(kind=kind, needed=number, run=run[kind], gpu_hours=sum(hours[kind]) if kind in hours else None)
        for kind, number in needed.items()
    )
    return SweepForecast(variants=tuple(variants), kinds=kinds, is_order_assumed=is_order_assumed)
