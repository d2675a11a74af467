"""Choice of the checks for an input."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from wrpo_engine.linting.findings import Finding, Limits, Severity
from wrpo_engine.linting.inputs import Kind, Subject
from wrpo_engine.linting.leakage import check_leakage
from wrpo_engine.linting.questions import check_echoes, check_questions
from wrpo_engine.linting.scores import check_scores
from wrpo_engine.linting.texts import BOS, CONTROL, EOS, Marks, check_duplicates, check_pairs, check_texts
from wrpo_engine.linting.tokens import check_tokens, token_columns

_ORDER = list(Severity)


@dataclass(frozen=True, kw_only=True)
class ModelTokens:
    """The special tokens of the model that is to be trained, if its tokenizer is known."""

    bos: int | None = None
    eos: int | None = None
    bos_text: str | None = None
    eos_text: str | None = None
    special: list[str] = field(default_factory=list)

    @property
    def marks(self) -> Marks:
        """The well-known marks and the model's own. Its own always count as control tokens."""
        own = [text for text in self.special if text]
        return Marks(
            bos=[*BOS, *([self.bos_text] if self.bos_text else [])],
            eos=[*EOS, *([self.eos_text] if self.eos_text else [])],
            control=[*CONTROL, *own],
        )


def run_checks(subject: Subject, limits: Limits, model: ModelTokens) -> list[Finding]:
    """Return all findings, the worst first."""
    found: list[Finding] = []
    table = subject.table
    if table is not None:
        match subject.kind:
            case Kind.TOKENS:
                columns = token_columns(table, subject.location)
                found += check_tokens(table, columns, limits, bos=model.bos, eos=model.eos)
            case Kind.SFT_ROWS:
                found += check_texts(table, ["response"], model.marks, limits)
                found += check_duplicates(table, ["response"], limits)
                found += check_echoes(table, ["response"], limits)
            case Kind.TRIPLES | Kind.PROMPTS:
                responses = ["source_chosen", "target_chosen", "rejected"]
                found += check_texts(table, responses, model.marks, limits)
                found += check_duplicates(table, responses, limits)
                found += check_pairs(table, limits)
                found += check_echoes(table, responses, limits)
                found += check_questions(table, subject.faults, limits)
                found += check_scores(table, limits)
    if subject.kind is Kind.PROMPTS:
        for rows in subject.sets.values():
            found += check_texts(rows, [], model.marks, limits)
            found += check_duplicates(rows, [], limits)
    found += check_leakage(_texts_only(subject), limits)
    return sorted(found, key=lambda each: _ORDER.index(each.severity))


def _texts_only(subject: Subject) -> dict[str, pl.DataFrame]:
    return {name: rows for name, rows in subject.sets.items() if "prompt" in rows.columns}
