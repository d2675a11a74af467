"""Metrics of all experiments, collected from the operator's store at each scrape."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wrpo_operator.api.conditions import ConditionType, Reason
from wrpo_operator.api.status import Phase
from wrpo_operator.runtime.metrics import Metrics
from wrpo_operator.runtime.observe import condition, parse_time
from wrpo_operator.runtime.resources import JsonObject, name_of, namespace_of

REASONS = frozenset(reason.value for reason in Reason)
PHASES = tuple(phase.value for phase in Phase)


class FleetCollector(Collector):
    """Experiments by phase, time blocked by reason and, if enabled, each experiment's progress.

    A standby exports nothing, so that sums over replicas are right.
    """

    def __init__(
        self,
        metrics: Metrics,
        experiments: Callable[[], Iterable[JsonObject]],
        *,
        leading: Callable[[], bool],
        now: Callable[[], datetime],
        per_experiment: bool,
    ) -> None:
        self._metrics = metrics
        self._experiments = experiments
        self._leading = leading
        self._now = now
        self._per_experiment = per_experiment
        self._asked_at: datetime | None = None

    def describe(self) -> Iterator[Metric]:
        """Yield the families without samples, for the registration."""
        yield from self._families()
        yield from self._metrics.blocked_seconds.describe()

    def collect(self) -> Iterator[Metric]:
        """Yield the families with current samples; a standby yields none."""
        families = self._families()
        if self._leading():
            now, before = self._now(), self._asked_at
            self._asked_at = now
            phases: Tally[str] = Tally()
            # One at a time, because all of them need tens of MiB.
            for obj in self._experiments():
                phases[_phase(obj)] += 1
                if self._per_experiment:
                    percent = (_status(obj).get("progress") or {}).get("percent") or 0
                    families[1].add_metric([namespace_of(obj), name_of(obj)], float(percent))
                if before is not None:
                    self._count_blocked(obj, before, now)
            for phase in PHASES:
                families[0].add_metric([phase], phases[phase])
        else:
            self._asked_at = None
        yield from families
        yield from self._metrics.blocked_seconds.collect()

    def _families(self) -> list[GaugeMetricFamily]:
        families = [GaugeMetricFamily("wrpo_experiments", "Number of experiments by phase.", labels=["phase"])]
        if self._per_experiment:
            names = ["namespace", "experiment"]
            families.append(
                GaugeMetricFamily(
                    "wrpo_experiment_progress_percent", "Progress of each experiment in percent.", labels=names
                )
            )
        return families

    def _count_blocked(self, obj: JsonObject, before: datetime, now: datetime) -> None:
        """Add the time since the last scrape, or since the experiment became blocked if that is later."""
        blocked = condition(_status(obj), ConditionType.BLOCKED)
        if blocked is None:
            return
        since = parse_time(blocked.get("lastTransitionTime")) or before
        reason = str(blocked.get("reason"))
        lasted = (now - max(since, before)).total_seconds()
        self._metrics.blocked_seconds.labels(reason if reason in REASONS else "Other").inc(max(0.0, lasted))


def _status(obj: JsonObject) -> Mapping[str, Any]:
    return obj.get("status") or {}


def _phase(obj: JsonObject) -> str:
    phase = str(_status(obj).get("phase") or Phase.PENDING)
    return phase if phase in PHASES else Phase.PENDING.value
