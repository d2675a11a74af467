"""Checks that a row's prompt is the one its responses belong to."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from wrpo_engine.formats.questions import Fault, FaultOf
from wrpo_engine.formats.rows import is_echo
from wrpo_engine.linting.findings import Finding, Limits, Severity, finding

_MESSAGES = {
    Fault.PROMPTS_DIFFER: "prompt, chosen and rejected ask different things; the responses belong to at most one",
    Fault.CONTEXT: "there is more than one user turn before the responses; `wrpo-engine convert` refuses such rows",
}


def check_echoes(table: pl.DataFrame, responses: Sequence[str], limits: Limits) -> list[Finding]:
    """Find rows in which a response is the prompt itself: a rejected one may be bad, a preferred one may not."""
    found: list[Finding] = []
    for column in responses:
        severity = Severity.WARNING if column == "rejected" else Severity.ERROR
        message = f"{column} is the prompt itself"
        echoes = table.filter(is_echo(column))
        found += finding(echoes, "prompt-equals-answer", severity, message, limits.shown(column))
    return found


def check_questions(table: pl.DataFrame, faults: Sequence[tuple[int, FaultOf]], limits: Limits) -> list[Finding]:
    """Report rows (by position) whose columns disagree about the question, or that have more before the response."""
    found: list[Finding] = []
    for fault, message in _MESSAGES.items():
        first = {position: each for position, each in reversed(faults) if each.fault is fault}
        positions = sorted(first)
        said = [f"{first[at].column} {first[at].what}" for at in positions]
        rows = table[positions].select("row", "prompt_id", _said=pl.Series(said, dtype=pl.String))
        found += finding(rows, fault.value, Severity.ERROR, message, limits.shown("prompt", as_column="_said"))
    return found
