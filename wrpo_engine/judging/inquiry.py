"""What a stage asks its judge: one client, one journal and one decided protocol for all its questions.

A judge of the stage's own starts only if a reply is missing: it may need minutes and a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeAlias

import polars as pl

from wrpo_engine.contract.evaluation import BenchmarkJudge
from wrpo_engine.errors import ConfigError
from wrpo_engine.judging.asking import Asker, is_answered, known_entry
from wrpo_engine.judging.cell import Cell, Question
from wrpo_engine.judging.client import KEY_VARIABLE, ChatClient, Connection, limits_of
from wrpo_engine.judging.decision import Cells, Decided, decide, known_decision, recall
from wrpo_engine.judging.journal import Journal, Known, read_journals
from wrpo_engine.judging.pacing import Pacer, budget_exceeded
from wrpo_engine.judging.protocol import Outcome
from wrpo_engine.judging.section import judge_section
from wrpo_engine.judging.serving import OwnJudge, serving
from wrpo_engine.judging.verdicts import Judged, check_invalid, frame_of
from wrpo_engine.stage import StageContext

_ENOUGH_TO_REFUSE = 200
"""Verdicts after which a stage does not wait for its end to refuse them."""
Parts: TypeAlias = Mapping[str, Sequence[Question]]
"""Name of a part's file -> its questions."""


def requests_of_parts(ctx: StageContext, names: Sequence[str]) -> int:
    """Return the requests that published parts took."""
    paths = ctx.output.fetch_all(names)
    return sum(int(pl.read_parquet(path, columns=["attempts"])["attempts"].sum()) for path in paths)


@dataclass(kw_only=True)
class Inquiry:
    """Asks what no earlier attempt has a reply to. A context manager: its end keeps the journal and ends the server."""

    ctx: StageContext
    judge: BenchmarkJudge
    published_parts: Callable[[], Sequence[str]]
    """Returns the names of the parts of verdicts that are in the artifact."""
    latencies_s: list[float] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Read the journals of earlier attempts. Nothing is asked yet."""
        self._journal, self._known = Journal(self.ctx.output), read_journals(self.ctx.output)
        self._client: ChatClient | None = None
        self._server = contextlib.ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the journal before the server ends, which may take as long as a pod's grace period."""
        try:
            self._journal.close()
        finally:
            self._server.close()

    def ask(
        self, cells: Cells, pending_of: Callable[[Cell], Parts], show: Callable[[int], None] = lambda _: None
    ) -> tuple[Decided, int]:
        """Publish the pending parts of a cell; return the decided protocol and the number of verdicts.

        `show` is called with the number of verdicts so far.
        """
        asker = self._asker()
        decided = known_decision(self.ctx, self.judge, cells) or recall(self.ctx, self.judge, cells, asker)
        if decided is None:
            asker.client = self._connected()
            decided = decide(self.ctx, self.judge, cells, asker)
        cell = cells(decided)
        pending = pending_of(cell)
        if not _are_answered(self._known, pending, cell):
            asker.client = self._connected()
        return decided, _ask_pending(self.ctx, cell, pending, asker, show)

    def _asker(self) -> Asker:
        """Return what asks about one cell: after its end it cannot ask again."""
        return Asker(client=self._client, journal=self._journal, known=self._known, latencies_s=self.latencies_s)

    def _connected(self) -> ChatClient:
        if self._client is None:
            own = self._server.enter_context(serving(self.ctx, self.judge))
            self._client = self._new_client(own)
        return self._client

    def _new_client(self, own: OwnJudge | None) -> ChatClient:
        ctx, runtime = self.ctx, self.ctx.config.runtime
        # The stage's own server gets no key.
        environ = {name: value for name, value in ctx.environ.items() if own is None or name != KEY_VARIABLE}
        is_limited = runtime.judge_max_requests is not None
        used = max(self._known.requests, requests_of_parts(ctx, self.published_parts())) if is_limited else 0
        pacer = Pacer(
            limits_of(runtime, environ),
            used=used,
            on_request=self._journal.note_request if is_limited else lambda: None,
        )
        return ChatClient(
            Connection.of(_endpoint(ctx, self.judge, own), runtime, environ),
            self.judge,
            pacer=pacer,
            check=lambda: None if own is None else own.server.raise_if_ended(),
        )


def _endpoint(ctx: StageContext, judge: BenchmarkJudge, own: OwnJudge | None) -> str:
    endpoint = own.endpoint if own is not None else ctx.config.runtime.judge_endpoint
    if endpoint is None:
        raise ConfigError(
            f"{judge_section(ctx.config.runtime)}.endpoint",
            "not set",
            f"the judge {judge.model} has neither an endpoint nor a model that the stage serves",
            "Set endpoint, or serve with a model.",
        )
    return endpoint


def _are_answered(known: Known, pending: Parts, cell: Cell) -> bool:
    """Return whether earlier attempts have left all replies to the pending questions."""
    return all(is_answered(known, question, cell) for part in pending.values() for question in part)


def _ask_pending(ctx: StageContext, cell: Cell, pending: Parts, asker: Asker, show: Callable[[int], None]) -> int:
    parts = _Parts(ctx, pending)
    questions = [question for part in pending.values() for question in part]
    _check_budget(ctx, asker, questions)
    show(0)
    judged: list[Judged] = []
    for each in _verdicts(ctx, cell, questions, asker):
        judged.append(each)
        parts.add(each)
        if each.verdict.outcome is not Outcome.OK and len(judged) >= _ENOUGH_TO_REFUSE:
            check_invalid(ctx, judged, len(cell.questions))
        show(len(judged))
    return len(judged)


def _verdicts(ctx: StageContext, cell: Cell, questions: Sequence[Question], asker: Asker) -> Iterator[Judged]:
    """Yield the verdicts in the order of the replies, until a stop is requested."""
    for each in asker.in_order_of_replies(
        questions,
        cell,
        concurrency=ctx.config.runtime.judge_concurrency,
        on_wait=ctx.stop.raise_if_requested,
    ):
        ctx.stop.raise_if_requested()
        yield each


class _Parts:
    """Publishes each part as soon as all its questions have a verdict."""

    def __init__(self, ctx: StageContext, questions: Parts) -> None:
        self._questions = questions
        self._output = ctx.output
        self._part_of = {question.key: name for name, part in questions.items() for question in part}
        self._judged: dict[str, dict[str, Judged]] = {name: {} for name in questions}
        for name, part in questions.items():
            if not part:
                self._publish(name)

    def add(self, judged: Judged) -> None:
        name = self._part_of[judged.question.key]
        self._judged[name][judged.question.key] = judged
        if len(self._judged[name]) == len(self._questions[name]):
            self._publish(name)

    def _publish(self, name: str) -> None:
        judged = self._judged.pop(name)
        rows = [judged[question.key] for question in self._questions[name]]
        self._output.publish(name, frame_of(rows).write_parquet)


def _check_budget(ctx: StageContext, asker: Asker, questions: Sequence[Question]) -> None:
    """Refuse a budget that cannot suffice before any request."""
    limit = ctx.config.runtime.judge_max_requests
    if limit is None or asker.client is None:
        return
    needed = sum(known_entry(asker.known, question, question.ask, 0) is None for question in questions)
    if asker.client.sent + needed > limit:
        raise budget_exceeded(limit, asker.client.sent, needed, section=judge_section(ctx.config.runtime))
