"""Accelerators of an experiment at one time: which stages start within the limits, the largest first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wrpo_operator.plan.model import StageId


@dataclass(frozen=True, slots=True)
class Demand:
    """Accelerators that a stage takes while it runs."""

    stage: StageId
    accelerators: int
    group: str = ""
    """Name of their group in the inventory; empty if it is not known which, so that only the limit of all counts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Accelerators that may be in use at the same time."""

    most: int | None = None
    """Of all groups together: spec.scheduling.maxGpus. None: no limit."""
    totals: Mapping[str, int] = field(default_factory=dict)
    """Of each group; one that is absent has no limit."""

    def never_admits(self, demand: Demand) -> bool:
        """Return whether a stage could not start even if nothing else ran."""
        return self.most is not None and demand.accelerators > self.most


def admitted(waiting: Sequence[Demand], running: Iterable[Demand], limits: Limits) -> frozenset[StageId]:
    """Return the stages that start now.

    The largest comes first; equal ones keep their order, which is that of urgency. Accelerators that the first stage
    without room will need are kept for it, so that smaller stages cannot delay it forever: nothing else of its group
    starts, and nothing else at all if it waits for the limit of all groups. Stages without accelerators always start. A
    stage that the limits never admit neither starts nor holds back another.
    """
    used: Counter[str] = Counter()
    for demand in running:
        used[demand.group] += demand.accelerators
    kept: set[str] = set()
    starting: set[StageId] = set()
    is_full = False
    for demand in sorted(waiting, key=lambda demand: -demand.accelerators):
        if demand.accelerators == 0:
            starting.add(demand.stage)
        elif limits.never_admits(demand) or is_full or demand.group in kept:
            continue
        elif limits.most is not None and used.total() + demand.accelerators > limits.most:
            is_full = True
        elif _exceeds(demand, used[demand.group], limits.totals.get(demand.group)):
            kept.add(demand.group)
        else:
            starting.add(demand.stage)
            used[demand.group] += demand.accelerators
    return frozenset(starting)


def _exceeds(demand: Demand, used: int, total: int | None) -> bool:
    """Return whether a group lacks room. A stage that is larger than its group starts once nothing else uses it: its
    pods run one after the other.
    """
    return total is not None and used + min(demand.accelerators, total) > total
