"""Accelerators that stages take and that the cluster offers, as the limits on them count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wrpo_engine.contract.definition import Shape
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.budget import Demand, Limits
from wrpo_operator.plan.classify import LIVE
from wrpo_operator.plan.model import ChildFact, Snapshot, StageId, StageNode
from wrpo_operator.plan.resources import devices_of, gpus_of
from wrpo_operator.plan.stage_views import StageView
from wrpo_operator.sizing.inventory import Inventory


def limits_of(spec: ExperimentSpec, inventory: Inventory | None) -> Limits:
    """Return the limits of an experiment. With a queue, Kueue lets children wait for the cluster's accelerators."""
    is_queued = spec.scheduling.queue_name is not None
    groups = () if inventory is None or is_queued else inventory.groups
    totals = {group.name: group.total for group in groups if group.total is not None}
    return Limits(most=spec.scheduling.max_gpus, totals=totals)


def demand_of(spec: ExperimentSpec, node: StageNode, inventory: Inventory | None) -> Demand:
    """Return the accelerators that a stage takes when it starts."""
    return Demand(node.id, gpus_of(spec, node), _group_of(spec, node, inventory))


def running_demands(
    snapshot: Snapshot, spec: ExperimentSpec, views: Sequence[StageView], inventory: Inventory | None
) -> Iterator[Demand]:
    """Yield the accelerators of live children, also of those that the spec no longer wants: their pods still run.

    A shard that has finished takes none.
    """
    nodes = {(str(view.id), view.node.hash): view.node for view in views}
    for child in snapshot.children:
        if child.state not in LIVE:
            continue
        node = nodes.get((child.stage, child.stage_hash))
        name = StageId(*child.stage.split("/", 1))
        if child.placement is not None:
            rest = max(0, child.placement.pods - child.succeeded_shards)
            group = child.placement.accelerator or _group_named(child.placement.resource, inventory)
            yield Demand(name, rest * child.placement.per_pod, group)
        elif node is not None:
            yield Demand(name, _left(spec, node, child), _group_of(spec, node, inventory))


def _left(spec: ExperimentSpec, node: StageNode, child: ChildFact) -> int:
    """Return the accelerators of a child's pods that have not finished."""
    whole = gpus_of(spec, node)
    if node.shape is not Shape.INDEXED_JOB:
        return whole
    shards = node.runtime.shards
    return whole // shards * max(0, shards - child.succeeded_shards)


def _group_of(spec: ExperimentSpec, node: StageNode, inventory: Inventory | None) -> str:
    if node.placement is not None:
        return node.placement.accelerator
    return next((_group_named(name, inventory) for name in devices_of(spec, node)), "")


def _group_named(resource: str, inventory: Inventory | None) -> str:
    """Return the only group that has a resource; empty if there is none or a choice of the scheduler."""
    groups = [group.name for group in inventory.groups if group.resource == resource] if inventory is not None else []
    return groups[0] if len(groups) == 1 else ""
