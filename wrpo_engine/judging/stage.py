"""The judge stage: a judge's verdicts on one system's answers to one benchmark, in parts of questions.

No question is asked twice: published parts, and the journals of earlier attempts, are looked up before a request.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from wrpo_engine.artifacts.parts import PARTS, part_name, parts_of_shard, pending_parts
from wrpo_engine.contract.evaluation import JudgeParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.judging.asking import Asker, is_answered
from wrpo_engine.judging.cell import Cell, Question, load_inputs, make_cell
from wrpo_engine.judging.client import KEY_VARIABLE, ChatClient, Connection, limits_of
from wrpo_engine.judging.decision import Cells, Decided, decide, known_decision, recall, with_protocol
from wrpo_engine.judging.journal import Journal, Known, read_journals
from wrpo_engine.judging.pacing import Pacer, budget_exceeded
from wrpo_engine.judging.protocol import Outcome
from wrpo_engine.judging.results import commit_when_complete
from wrpo_engine.judging.section import judge_section
from wrpo_engine.judging.serving import OwnJudge, serving
from wrpo_engine.judging.verdicts import Judged, check_invalid, frame_of
from wrpo_engine.stage import StageContext, StageResult

_ENOUGH_TO_REFUSE = 200
"""Verdicts after which a stage does not wait for its end to refuse them."""


def run(ctx: StageContext) -> StageResult:
    """Ask the questions of this shard's pending parts, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, JudgeParams)
    cells = cells_of(ctx, params)
    decided = known_decision(ctx, params, cells)
    latencies_s: list[float] = []
    written = 0
    if decided is None or pending_parts(ctx, part_names(cells(decided))):
        decided, written = _ask(ctx, params, cells, decided, latencies_s)
    metrics = commit_when_complete(ctx, with_protocol(params, decided), cells(decided), part_names(cells(decided)))
    return StageResult(rows=written, metrics=metrics | _latency(latencies_s))


def cells_of(ctx: StageContext, params: JudgeParams) -> Cells:
    """Read the stage's inputs, and return what makes its cell of them for a decided protocol."""
    inputs = load_inputs(ctx, params)

    @functools.cache
    def cell(decided: Decided) -> Cell:
        return make_cell(inputs, with_protocol(params, decided), ctx.config.output)

    return cell


def part_names(cell: Cell) -> list[str]:
    """Return the names of the parts of all shards."""
    return [part_name(index) for index in range(len(cell.parts))]


def requests_of_parts(ctx: StageContext) -> int:
    """Return the requests that the published parts took."""
    paths = ctx.output.fetch_all(ctx.output.published(PARTS))
    return sum(int(pl.read_parquet(path, columns=["attempts"])["attempts"].sum()) for path in paths)


def _endpoint(ctx: StageContext, params: JudgeParams, own: OwnJudge | None) -> str:
    endpoint = own.endpoint if own is not None else ctx.config.runtime.judge_endpoint
    if endpoint is None:
        raise ConfigError(
            f"{judge_section(ctx.config.runtime)}.endpoint",
            "not set",
            f"the judge {params.model} has neither an endpoint nor a model that the stage serves",
            "Set endpoint, or serve with a model.",
        )
    return endpoint


def _ask(
    ctx: StageContext,
    params: JudgeParams,
    cells: Cells,
    decided: Decided | None,
    latencies_s: list[float],
) -> tuple[Decided, int]:
    """Ask all that is pending; return the protocol and the number of verdicts.

    A judge of the stage's own starts only if a reply is missing: it may need minutes and a GPU.
    """
    asker = Asker(client=None, journal=Journal(ctx.output), known=read_journals(ctx.output), latencies_s=latencies_s)
    try:
        if decided is None:
            decided = recall(ctx, params, cells, asker)
        must_ask = decided is None or not _is_answered(ctx, cells(decided), asker.known)
        with _client_of(ctx, params, asker) if must_ask else contextlib.nullcontext():
            if decided is None:
                decided = decide(ctx, params, cells, asker)
            return decided, _ask_pending(ctx, cells(decided), asker)
    finally:
        asker.journal.close()


@contextlib.contextmanager
def _client_of(ctx: StageContext, params: JudgeParams, asker: Asker) -> Iterator[None]:
    """Give an asker its client, and the client its server if that is the stage's own."""
    with serving(ctx, params) as own:
        asker.client = _client(ctx, params, own, asker)
        try:
            yield
        finally:
            # Before the server's end, which may take as long as a pod's grace period.
            asker.journal.close()


def _is_answered(ctx: StageContext, cell: Cell, known: Known) -> bool:
    """Return whether earlier attempts have left all replies to this shard's pending questions."""
    todo = frozenset(pending_parts(ctx, part_names(cell)))
    parts = zip(part_names(cell), cell.parts, strict=True)
    return all(is_answered(known, question, cell) for name, part in parts if name in todo for question in part)


def _client(ctx: StageContext, params: JudgeParams, own: OwnJudge | None, asker: Asker) -> ChatClient:
    runtime = ctx.config.runtime
    # The stage's own server gets no key.
    environ = {name: value for name, value in ctx.environ.items() if own is None or name != KEY_VARIABLE}
    is_limited = runtime.judge_max_requests is not None
    pacer = Pacer(
        limits_of(runtime, environ),
        used=max(asker.known.requests, requests_of_parts(ctx)) if is_limited else 0,
        on_request=asker.journal.note_request if is_limited else lambda: None,
    )
    return ChatClient(
        Connection.of(_endpoint(ctx, params, own), runtime, environ),
        params,
        pacer=pacer,
        check=lambda: None if own is None else own.server.raise_if_ended(),
    )


def _ask_pending(ctx: StageContext, cell: Cell, asker: Asker) -> int:
    names = part_names(cell)
    todo = pending_parts(ctx, names)
    parts = _Parts(ctx, {name: part for name, part in zip(names, cell.parts, strict=True) if name in set(todo)})
    questions = [question for name in todo for question in parts.questions[name]]
    _check_budget(ctx, asker, questions)
    own = set(parts_of_shard(names, ctx.shard, ctx.config.runtime.shards))
    total = sum(len(part) for name, part in zip(names, cell.parts, strict=True) if name in own)
    done = total - len(questions)
    ctx.progress.update(done, total)
    judged: list[Judged] = []
    for each in asker.in_order_of_replies(
        questions,
        cell,
        concurrency=ctx.config.runtime.judge_concurrency,
        on_wait=ctx.stop.raise_if_requested,
    ):
        ctx.stop.raise_if_requested()
        judged.append(each)
        parts.add(each)
        if each.verdict.outcome is not Outcome.OK and len(judged) >= _ENOUGH_TO_REFUSE:
            check_invalid(ctx, judged, len(cell.questions))
        ctx.progress.update(done + len(judged), total)
    return len(judged)


class _Parts:
    """Publishes each part as soon as all its questions have a verdict."""

    def __init__(self, ctx: StageContext, questions: Mapping[str, Sequence[Question]]) -> None:
        self.questions = questions
        self._output = ctx.output
        self._part_of = {question.key: name for name, part in questions.items() for question in part}
        self._judged: dict[str, dict[str, Judged]] = {name: {} for name in questions}
        for name, part in questions.items():
            if not part:
                self._publish(name)

    def add(self, judged: Judged) -> None:
        name = self._part_of[judged.question.key]
        self._judged[name][judged.question.key] = judged
        if len(self._judged[name]) == len(self.questions[name]):
            self._publish(name)

    def _publish(self, name: str) -> None:
        judged = self._judged.pop(name)
        rows = [judged[question.key] for question in self.questions[name]]
        self._output.publish(name, frame_of(rows).write_parquet)


def _check_budget(ctx: StageContext, asker: Asker, questions: Sequence[Question]) -> None:
    """Refuse a budget that cannot suffice before any request."""
    limit = ctx.config.runtime.judge_max_requests
    if limit is None or asker.client is None:
        return
    kept = {key for key, _ in asker.known.entries}
    needed = sum(question.key not in kept for question in questions)
    if asker.client.sent + needed > limit:
        raise budget_exceeded(limit, asker.client.sent, needed, section=judge_section(ctx.config.runtime))


def _latency(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return the latency of this attempt's requests. Not part of the artifact, which does not depend on time."""
    if len(latencies_s) < 2:
        return {}
    percentiles = statistics.quantiles(latencies_s, n=100, method="inclusive")
    return {f"latency_p{number}_ms": 1000.0 * percentiles[number - 1] for number in (50, 95, 99)}
