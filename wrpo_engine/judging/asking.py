"""Questions of a stage in flight: several threads ask, every reply goes to the journal at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from wrpo_engine.judging.cell import Cell, Question, digest_of_ask
from wrpo_engine.judging.client import ChatClient
from wrpo_engine.judging.journal import Entry, Journal, Known
from wrpo_engine.judging.protocol import Ask, Outcome
from wrpo_engine.judging.verdicts import Judged, verdict_of
from wrpo_engine.scoring.in_flight import Workers, in_flight

_GRACE_S = 10.0
"""Seconds for replies in flight when the stage is stopped, less than Kubernetes' 30 until SIGKILL: they are paid."""


@dataclass(kw_only=True)
class Asker:
    """Asks for what no earlier attempt has a reply to. Safe to use from several threads."""

    client: ChatClient | None
    """None: all that is needed is known."""
    journal: Journal
    known: Known
    stopped: threading.Event = field(default_factory=threading.Event)
    latencies_s: list[float] = field(default_factory=list)

    def entry(self, question: Question, ask: Ask, number: int) -> Entry:
        """Return the reply to one request of a question, with the requests that it took."""
        entry = known_entry(self.known, question, ask, number)
        if entry is None:
            assert self.client is not None, question.where
            answered = self.client.ask(ask, question.where, self.stopped)
            digest = request_digest(ask, number)
            entry = Entry(key=question.key, digest=digest, reply=answered.reply, requests=answered.requests)
            self.latencies_s.append(answered.latency_s)
            self.keep(entry)
        return entry

    def keep(self, entry: Entry) -> None:
        """Keep a reply for this attempt and for the next ones."""
        self.journal.add(entry)
        self.known.entries[entry.key, entry.digest] = entry

    def judged(self, question: Question, cell: Cell) -> Judged:
        """Return a question's verdict, after its follow-ups."""
        entries = _entries(question, cell, lambda ask, number: self.entry(question, ask, number))
        assert entries is not None
        replies = [entry.reply for entry in entries]
        verdict = verdict_of(cell.protocol, question.ask, replies)
        requests = sum(entry.requests for entry in entries)
        return Judged(question=question, replies=replies, requests=requests, verdict=verdict)

    def in_order_of_replies(
        self, questions: Sequence[Question], cell: Cell, *, concurrency: int, on_wait: Callable[[], None]
    ) -> Iterator[Judged]:
        """Yield each question's verdict as soon as it is there, with `concurrency` requests in flight."""
        replies = in_flight(
            lambda index: self.judged(questions[index], cell),
            len(questions),
            Workers(threads=concurrency, stopped=self.stopped, grace_s=_GRACE_S),
            on_wait=on_wait,
        )
        with contextlib.closing(replies):
            yield from (judged for _, judged in replies)


def is_answered(known: Known, question: Question, cell: Cell) -> bool:
    """Return whether earlier attempts have left every reply that a question's verdict needs."""
    return _entries(question, cell, lambda ask, number: known_entry(known, question, ask, number)) is not None


def known_entry(known: Known, question: Question, ask: Ask, number: int) -> Entry | None:
    """Return what an earlier attempt has left of request `number` of a question."""
    return known.entries.get((question.key, request_digest(ask, number)))


def _entries(question: Question, cell: Cell, entry_of: Callable[[Ask, int], Entry | None]) -> list[Entry] | None:
    """Return the replies to a question and its follow-ups; None if `entry_of` has none to one of them."""
    entries: list[Entry] = []
    ask: Ask | None = question.ask
    while ask is not None:
        entry = entry_of(ask, len(entries))
        if entry is None:
            return None
        entries.append(entry)
        ask = None
        if entry.reply.outcome is Outcome.OK and len(entries) < cell.protocol.rounds:
            ask = cell.protocol.follow_up(question.ask, [each.reply.as_reply() for each in entries])
    return entries


def request_digest(ask: Ask, number: int) -> str:
    """Return what names request `number` of a question: a follow-up may repeat the first request word by word."""
    return f"{number}:{digest_of_ask(ask)}"
