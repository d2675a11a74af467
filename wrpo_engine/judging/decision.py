"""The protocol that Auto comes to: log probabilities if the judge has them, otherwise its text. Decided once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from wrpo_engine.contract.evaluation import BenchmarkJudge
from wrpo_engine.judging.asking import Asker, known_entry, request_digest
from wrpo_engine.judging.cell import Cell
from wrpo_engine.judging.client import LogprobsRefused
from wrpo_engine.judging.journal import Entry
from wrpo_engine.judging.protocol import Outcome
from wrpo_engine.judging.replies import KeptReply
from wrpo_engine.stage import StageContext

log = logging.getLogger("wrpo_engine")

Decided = Literal["Logprobs", "Text"]
Cells = Callable[[Decided], Cell]
"""The stage's cell by protocol."""
Judge = TypeVar("Judge", bound=BenchmarkJudge)
DECISION = "protocol.json"
"""Committed with the artifact; the next attempt follows it."""


def with_protocol(params: Judge, decided: Decided) -> Judge:
    """Return the parameters with Auto replaced by what it came to."""
    return params.model_copy(update={"protocol": decided})


def known_decision(ctx: StageContext, params: BenchmarkJudge, cells: Cells) -> Decided | None:
    """Return the protocol; None if it is Auto and has to be decided by a reply."""
    if params.protocol != "Auto":
        return params.protocol
    if DECISION in ctx.output.published(DECISION):
        content = json.loads(ctx.output.fetch(DECISION).read_bytes())
        return "Text" if content["protocol"] == "Text" else "Logprobs"
    has_logprobs = any(question.ask.top_logprobs is not None for question in cells("Logprobs").questions)
    return None if has_logprobs else "Logprobs"


def recall(ctx: StageContext, params: BenchmarkJudge, cells: Cells, asker: Asker) -> Decided | None:
    """Return the protocol that replies of earlier attempts show; None if they show none. Asks nothing.

    An attempt that was killed between a reply and the record of its decision is continued so.
    """
    entries = (known_entry(asker.known, question, question.ask, 0) for question in cells("Logprobs").questions)
    found = next((shown for entry in entries if entry is not None and (shown := _shown_by(entry)) is not None), None)
    return None if found is None else _record(ctx, params, cells, asker, found)


def decide(ctx: StageContext, params: BenchmarkJudge, cells: Cells, asker: Asker) -> Decided:
    """Ask one question after the other until a reply shows whether the judge has log probabilities."""
    return _record(ctx, params, cells, asker, _probe(ctx, cells("Logprobs"), asker))


def _record(ctx: StageContext, params: BenchmarkJudge, cells: Cells, asker: Asker, decided: Decided) -> Decided:
    if decided == "Text":
        log.info("the judge %s has no log probabilities; its text is read", params.model)
        _carry_over(cells("Logprobs"), cells("Text"), asker)
    content = json.dumps({"protocol": decided}) + "\n"
    ctx.output.publish(DECISION, text_writer(content))
    return decided


def text_writer(content: str) -> Callable[[Path], None]:
    """Return what writes a text to a file, with its line ends."""

    def write(path: Path) -> None:
        path.write_text(content, encoding="utf-8", newline="")

    return write


def _probe(ctx: StageContext, cell: Cell, asker: Asker) -> Decided:
    for question in cell.questions:
        ctx.stop.raise_if_requested()
        try:
            shown = _shown_by(asker.entry(question, question.ask, 0))
        except LogprobsRefused as refusal:
            log.info("the judge refuses requests for log probabilities: %s", refusal)
            return "Text"
        if shown is not None:
            return shown
    return "Logprobs"


def _shown_by(entry: Entry) -> Decided | None:
    """Return what a reply shows; None for one without a text of the judge."""
    if entry.reply.outcome is not Outcome.OK or entry.reply.is_refusal:
        return None
    return "Text" if entry.reply.logprobs is None else "Logprobs"


def _carry_over(asked: Cell, cell: Cell, asker: Asker) -> None:
    """Use the texts of the replies so far, where the question differs in nothing but the log probabilities."""
    requests = {question.key: question.ask for question in cell.questions}
    for question in asked.questions:
        ask = requests.get(question.key)
        entry = known_entry(asker.known, question, question.ask, 0)
        if ask is None or entry is None or replace(question.ask, top_logprobs=None) != replace(ask, top_logprobs=None):
            continue
        reply: KeptReply = replace(entry.reply, logprobs=None)
        asker.keep(Entry(key=question.key, digest=request_digest(ask, 0), reply=reply, requests=entry.requests))
