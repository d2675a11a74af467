"""Urgency of stages: how much work waits for each of them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from wrpo_engine.contract.stages import STAGES
from wrpo_operator.plan.model import StageId, StageNode


def urgencies(nodes: Sequence[StageNode], idle: AbstractSet[StageId]) -> Mapping[StageId, int]:
    """Return the weight of the heaviest path from each stage to an end of the graph, the stage included.

    `nodes` are in topological order. Stages in `idle` have ended or never start: no path leads through them, and their
    urgency is 0.
    """
    after: dict[StageId, int] = defaultdict(int)
    found: dict[StageId, int] = {}
    for node in reversed(nodes):
        found[node.id] = 0 if node.id in idle else STAGES[node.id.kind].weight + after[node.id]
        for upstream in node.upstream:
            after[upstream] = max(after[upstream], found[node.id])
    return found
