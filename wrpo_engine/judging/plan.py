"""`wrpo-engine judge --plan --config FILE`: the requests that a stage would send, without sending one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wrpo_engine.artifacts.parts import pending_parts
from wrpo_engine.contract.evaluation import JudgeParams
from wrpo_engine.judging.asking import known_entry
from wrpo_engine.judging.cell import Cell
from wrpo_engine.judging.decision import known_decision
from wrpo_engine.judging.journal import read_journals
from wrpo_engine.judging.stage import cells_of, part_names
from wrpo_engine.process.cli import read_config
from wrpo_engine.process.progress import Progress
from wrpo_engine.stage import StageContext, StopRequest, make_context

_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a stage would ask."""

    model: str
    questions: int
    kept: int
    """Questions with a reply of an earlier attempt."""
    settled: int
    """Verdicts that need no question."""
    rounds: int
    prompt_tokens: int
    """Estimate of the first requests, by characters."""
    completion_tokens: int
    """At most, in the first requests."""

    def lines(self) -> list[str]:
        """Return the plan as text."""
        pending = self.questions - self.kept
        asked = f"{self.questions} questions, {self.kept} of them answered before"
        prompts = f"about {self.prompt_tokens} of prompts ({_CHARACTERS_A_TOKEN} characters a token)"
        return [
            f"judge {self.model}: {asked}, {self.settled} verdicts without a question",
            f"requests: {pending}, with follow-ups at most {pending * self.rounds}, retries not counted",
            f"tokens: {prompts}, at most {self.completion_tokens} of replies to first requests",
        ]


def main(path: Path, environ: Mapping[str, str] | None = None) -> int:
    """Print the plan of the stage that the file configures; return 0."""
    config = read_config("judge", path)
    ctx = make_context(
        config,
        environ=os.environ if environ is None else environ,
        clock=lambda: datetime.now(UTC),
        progress=Progress([], time.monotonic),
        stop=StopRequest(),
    )
    print("\n".join(make_plan(ctx).lines()))
    return 0


def make_plan(ctx: StageContext) -> Plan:
    """Return what the stage would ask now. Sends nothing and writes nothing."""
    params = ctx.config.params
    assert isinstance(params, JudgeParams)
    cells = cells_of(ctx, params)
    cell = cells(known_decision(ctx, params, cells) or "Logprobs")
    todo = _pending(ctx, cell)
    asks = [question.ask for question in cell.questions if question.key in todo]
    characters = sum(len(message["content"]) for ask in asks for message in ask.messages)
    return Plan(
        model=params.model,
        questions=len(cell.questions),
        kept=len(cell.questions) - len(asks),
        settled=len(cell.settled),
        rounds=cell.protocol.rounds,
        prompt_tokens=-(-characters // _CHARACTERS_A_TOKEN),
        completion_tokens=sum(ask.max_tokens for ask in asks),
    )


def _pending(ctx: StageContext, cell: Cell) -> set[str]:
    """Return the keys of the questions that neither a part nor a journal answers."""
    if ctx.output.committed() is not None:
        return set()
    known = read_journals(ctx.output)
    parts = dict(zip(part_names(cell), cell.parts, strict=True))
    return {
        question.key
        for name in pending_parts(ctx, list(parts))
        for question in parts[name]
        if known_entry(known, question, question.ask, 0) is None
    }
