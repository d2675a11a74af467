"""Display of an experiment's status: a tree for terminals, lines for pipes. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wrpo_operator.api.conditions import ConditionType
from wrpo_operator.api.placement import Placement
from wrpo_operator.api.status import Attempt, ExperimentStatus, Phase, StageState, StageStatus, parse_status
from wrpo_operator.cli.headlines import headlines
from wrpo_operator.runtime.resources import JsonObject, meta, name_of, namespace_of

STYLES = {
    StageState.PENDING: ("·", "dim"),
    StageState.WAITING: ("…", "yellow"),
    StageState.RUNNING: ("▶", "cyan"),
    StageState.SUSPENDED: ("⏸", "yellow"),
    StageState.SUCCEEDED: ("✔", "green"),
    StageState.FAILED: ("✘", "bold red"),
    StageState.SKIPPED: ("-", "dim"),
}
SHOWN_METRICS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an experiment ended."""

    succeeded: bool
    message: str


def outcome_of(obj: JsonObject) -> Outcome | None:
    """Return the outcome of the current spec; None while it has none."""
    status = parse_status(obj.get("status"))
    if (status.observed_generation or 0) < int(meta(obj).get("generation") or 0):
        return None
    if status.phase is Phase.SUCCEEDED:
        return Outcome(True, _message(status, ConditionType.SUCCEEDED))
    if status.phase is Phase.FAILED:
        return Outcome(False, _message(status, ConditionType.FAILED))
    if status.phase is Phase.INVALID:
        return Outcome(False, _message(status, ConditionType.ACCEPTED))
    return None


def _message(status: ExperimentStatus, kind: ConditionType) -> str:
    condition = status.condition(kind.value)
    return condition.message if condition else ""


def duration(seconds: float) -> str:
    """Format a duration as 42s, 3m05s or 2h07m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def detail(stage: StageStatus) -> str:
    """Return the details of a stage in one line."""
    parts: list[str] = []
    if stage.cached:
        parts.append("artifact already existed")
    if stage.shards and not stage.shards.endswith("/1"):
        parts.append(f"shards {stage.shards}")
    if len(stage.attempts) > 1:
        parts.append(f"attempt {stage.attempts[-1].number}")
    if stage.has_diverged:
        parts.append("DIVERGES: chosen responses become improbable")
    if stage.state is StageState.RUNNING and stage.remaining_seconds is not None:
        parts.append(f"about {duration(stage.remaining_seconds)} left")
    parts += [f"{name}={value:.4g}" for name, value in list(stage.metrics.items())[:SHOWN_METRICS]]
    if stage.message and stage.state is not StageState.SUCCEEDED:
        parts.append(stage.message)
    if stage.state is StageState.WAITING and stage.attempts and words(stage.attempts[-1]):
        parts.append(f"attempt {stage.attempts[-1].number} ended: {words(stage.attempts[-1])}")
    return ", ".join(parts)


def words(attempt: Attempt) -> str:
    """Return the reason and message of an attempt's end."""
    reason, message = attempt.reason or "", attempt.message or ""
    return message if message.startswith(reason) and message else ": ".join(filter(None, (reason, message)))


def render(obj: JsonObject, *, note: str = "") -> RenderableType:
    """Return the table of an experiment."""
    status = parse_status(obj.get("status"))
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=False)
    for column in ("", "Stage", "State", "Progress", ""):
        table.add_column(column, overflow="fold")
    for stage in status.stages:
        mark, style = STYLES[stage.state]
        bar: RenderableType = ""
        state = stage.state.value
        if stage.state is StageState.RUNNING and stage.progress is not None:
            bar = ProgressBar(total=100, completed=stage.progress, width=20)
            state += f" {stage.progress}%"
        table.add_row(Text(mark, style), stage.name, Text(state, style), bar, Text(detail(stage), "dim"))
    blockers = [
        Text.assemble(("blocked ", "yellow"), f"{blocker.object}: {blocker.reason}: {blocker.message}")
        for blocker in status.blockers
    ]
    tail = [Text(note, "yellow")] if note else []
    return Group(Text(headline(obj), "bold"), table, *blockers, *tail)


def headline(obj: JsonObject) -> str:
    """Return name, phase and progress in one line."""
    status = parse_status(obj.get("status"))
    phase = status.phase.value if status.phase else "not seen by an operator yet"
    text = f"{namespace_of(obj)}/{name_of(obj)}  {phase}"
    if status.progress is not None and status.phase is Phase.RUNNING:
        text += f"  {status.progress.percent}%"
        if status.progress.remaining_seconds is not None:
            text += f", about {duration(status.progress.remaining_seconds)} left"
    ended = outcome_of(obj)
    if ended is not None and ended.message and not ended.succeeded:
        text += f"\n{ended.message}"
    return text


def placement_text(placement: Placement, *, wide: bool = False) -> str:
    """Return the accelerators of a stage in a few words; `wide` adds why, and what else would fit."""
    text = f"{placement.per_pod} x {placement.accelerator or placement.resource}" if placement.per_pod else "CPU"
    if placement.pods > 1:
        text = f"{placement.pods} pods of {text}"
    if placement.tensor_parallel_size > 1:
        text += f", tensor parallel {placement.tensor_parallel_size}"
    if placement.pipeline_parallel_size > 1:
        text += f", pipeline parallel {placement.pipeline_parallel_size}"
    if placement.step:
        text += f", more room after OutOfMemory ({placement.step})"
    if not wide:
        return text
    text += f": {placement.arithmetic}" if placement.arithmetic else ""
    return text + "".join(f"; or {other}" for other in placement.alternatives)


def tree_lines(obj: JsonObject, *, wide: bool = False) -> Iterator[str]:
    """Yield the status as plain lines: stages, their accelerators and attempts, blockers, results, warnings.

    `wide` adds why these accelerators were chosen, and more about the results.
    """
    status = parse_status(obj.get("status"))
    yield headline(obj)
    for stage in status.stages:
        progress = f" {stage.progress}%" if stage.state is StageState.RUNNING and stage.progress is not None else ""
        extra = detail(stage)
        yield f"  {stage.name:<24} {stage.state.value}{progress}{'  ' + extra if extra else ''}"
        if stage.placement is not None:
            yield f"    runs on {placement_text(stage.placement, wide=wide)}"
        if wide and stage.facts is not None and stage.facts.revision is not None:
            yield f"    read from the hub; to pin the model: revision: {stage.facts.revision}"
        for attempt in stage.attempts:
            code = f" exit {attempt.exit_code}" if attempt.exit_code is not None else ""
            why = f"  {words(attempt)}" if words(attempt) else ""
            yield f"    attempt {attempt.number}  {attempt.state.value}{code}  {attempt.child}{why}"
    for blocker in status.blockers:
        yield f"  blocked: {blocker.object}: {blocker.reason}: {blocker.message} (since {blocker.since})"
    evaluated = status.stage_named("evaluate")
    if evaluated is not None and evaluated.state is StageState.SUCCEEDED:
        yield from (f"  result: {line}" for line in headlines(evaluated.metrics, wide=wide))
    warned = status.condition(ConditionType.WARNED.value)
    if warned is not None and warned.status == "True":
        yield f"  warning: {warned.message}"


class Changes:
    """Converts successive statuses to lines about the changes between them."""

    def __init__(self) -> None:
        self._stages: dict[str, tuple[StageState, int, bool]] = {}
        self._phase: str = ""
        self._blockers: frozenset[str] = frozenset()

    def lines(self, obj: JsonObject) -> Iterator[str]:
        """Yield one line for each stage that changed state, gained 10 percent or diverged, each blocker, each phase."""
        status = parse_status(obj.get("status"))
        for stage in status.stages:
            tenth = (stage.progress or 0) // 10 if stage.state is StageState.RUNNING else 0
            known = self._stages.get(stage.name)
            now = (stage.state, tenth, stage.has_diverged)
            if known == now or (known is None and stage.state is StageState.PENDING):
                continue
            self._stages[stage.name] = now
            progress = f" {stage.progress}%" if tenth else ""
            extra = detail(stage)
            yield f"{stage.name}: {stage.state.value}{progress}{' (' + extra + ')' if extra else ''}"
        blockers = frozenset(f"blocked: {entry.object}: {entry.reason}: {entry.message}" for entry in status.blockers)
        yield from sorted(blockers - self._blockers)
        self._blockers = blockers
        phase = status.phase.value if status.phase else ""
        if phase and phase != self._phase:
            self._phase = phase
            yield headline(obj)
