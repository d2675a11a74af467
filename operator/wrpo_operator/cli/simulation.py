"""The order in which stages run, and what they use at a time. No I/O."""

from __future__ import annotations

from collections.abc import Mapping

from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.budget import Demand, Limits, admitted
from wrpo_operator.plan.demands import demand_of, limits_of
from wrpo_operator.plan.model import StageId, StageNode
from wrpo_operator.plan.urgency import urgencies
from wrpo_operator.sizing.inventory import Inventory

_UNKNOWN_HOURS = 1.0
"""Duration of a stage with accelerators whose time is unknown, for the order of stages."""


def simulate(
    spec: ExperimentSpec,
    inventory: Inventory | None,
    nodes: list[StageNode],
    hours: Mapping[str, float | None],
    done_before: set[StageId],
) -> tuple[int, float]:
    """Return the most accelerators in use at a time and the hours until the last stage ends.

    Stages start as the planner starts them: when all before have ended, the largest first, of these the most urgent,
    within the limits.
    """
    limits, ended, urgency = limits_of(spec, inventory), set(done_before), urgencies(nodes, done_before)
    waiting = sorted(nodes, key=lambda node: -urgency[node.id])
    running: dict[StageId, float] = {}
    demands = {node.id: demand_of(spec, node, inventory) for node in nodes}
    now, most = 0.0, 0
    while waiting or running:
        ready = [demands[node.id] for node in waiting if all(before in ended for before in _before(node))]
        for stage in admitted(ready, [demands[stage] for stage in running], limits):
            duration = hours.get(str(stage))
            usual = _UNKNOWN_HOURS if demands[stage].accelerators else 0.0
            running[stage] = now + (usual if duration is None else duration)
        waiting = [node for node in waiting if node.id not in running]
        if not running:
            break  # The rest is larger than scheduling.maxGpus.
        most = max(most, sum(_in_use(demands[stage], limits) for stage in running))
        now = min(running.values())
        ended |= {stage for stage, end in running.items() if end <= now}
        running = {stage: end for stage, end in running.items() if end > now}
    return most, now


def _in_use(demand: Demand, limits: Limits) -> int:
    return min(demand.accelerators, limits.totals.get(demand.group, demand.accelerators))


def _before(node: StageNode) -> set[StageId]:
    return {*node.upstream, *(need.facts for need in node.needs)}
