"""Results of finished children: what their pods report in their termination messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wrpo_engine.config import TerminationMessage
from wrpo_operator.api.status import MAX_METRICS, StageFacts, StageStatus
from wrpo_operator.plan.model import ChildFact, ChildState


def bounded_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return finite metrics, at most as many as the status may hold."""
    finite = {name[:128]: float(value) for name, value in metrics.items() if abs(value) < float("inf")}
    return dict(sorted(finite.items())[:MAX_METRICS])


def result_of(child: ChildFact) -> TerminationMessage | None:
    """Return the termination message of a finished child: that of the committing pod, else that of the first pod."""
    done = [(pod, pod.termination) for pod in child.pods if pod.termination and pod.termination.outcome == "Succeeded"]
    if not done:
        return None
    committed = [item for item in done if item[1].artifact]
    return min(committed or done, key=lambda item: (item[1].cached, item[0].index or 0, item[0].name))[1]


def with_result(record: StageStatus, children: Sequence[ChildFact]) -> StageStatus:
    """Return the record of a stage that has succeeded with its result; as it is while no pod's message is observed."""
    if record.cached is not None:
        return record
    done = [child for child in children if child.state is ChildState.SUCCEEDED]
    result = next((found for child in done if (found := result_of(child)) is not None), None)
    if result is None:
        return record
    rows = {} if result.rows is None else {"rows": float(result.rows)}
    facts = None if result.facts is None else StageFacts.model_validate(result.facts.model_dump())
    metrics = bounded_metrics(dict(result.metrics) | rows)
    return record.model_copy(update={"cached": result.cached, "metrics": metrics, "facts": facts})
