"""Interface of a benchmark's protocol: requests to a judge, reading of replies, and counting. Pure.

The judge stage knows nothing of a benchmark but this. A protocol does no I/O and holds no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from typing import Protocol as TypingProtocol

Message = Mapping[str, str]
"""role and content."""


class Outcome(StrEnum):
    """What came of a question to a judge."""

    OK = "ok"
    UNPARSABLE = "unparsable"
    """The reply holds no verdict of the scale."""
    REFUSED = "refused"
    """The judge declined to answer."""
    TOO_LONG = "too_long"
    """The endpoint refused the request because it exceeds the judge's context."""
    FAILED = "failed"
    """The endpoint gave no usable reply to this question in all attempts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of a benchmark, as its judge sees it."""

    item_id: str
    index: int
    """Position in the bundle."""
    category: str
    turns: tuple[str, ...]
    messages: tuple[Message, ...] = ()
    """Conversation before the first turn."""
    reference: tuple[str, ...] = ()
    """Reference answers by turn; empty for none."""
    baseline: tuple[str, ...] = ()
    """The baseline's answers by turn; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question to a judge."""

    item_id: str
    order: int
    """0, or 1 with the two answers swapped."""
    turn: int
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float
    top_logprobs: int | None = None
    """Alternatives of the first token whose log probabilities are asked for; None: no log probabilities."""
    prompt_name: str = ""
    """Name of the judge prompt, for native files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A judge's reply to a question."""

    text: str
    """Without a reasoning part that the server separates."""
    finish_reason: str = "stop"
    top_logprobs: Mapping[str, float] | None = None
    """Token -> log probability at the first position; None if the reply has none."""
    is_refusal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was read from the replies to one question."""

    item_id: str
    order: int
    turn: int
    outcome: Outcome
    verdict: str = ""
    """The label or number as the judge wrote it."""
    value: float | None = None
    """AlpacaEval: preference from 1 (baseline) to 2; Arena-Hard: the model's score of the game from 0 to 1; MT-Bench:
    1 to 10. None unless the outcome is ok."""
    weight: float = 1.0
    """Arena-Hard: 3 for a decisive verdict."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What one judge was asked about one system, what it replied, and the verdicts."""

    asks: Sequence[Ask]
    """First questions only."""
    verdicts: Sequence[Verdict]
    """Those without a question too."""
    replies: Mapping[tuple[str, int, int], Sequence[Reply]]
    """(item id, order, turn) -> the replies to a question and its follow-ups."""
    system: str
    judge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOutcome:
    """What a benchmark's score is made of: one row an item."""

    item_id: str
    value: float | None
    weight: float
    valid: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Result of a system on a benchmark by one judge."""

    metrics: Mapping[str, float]
    """Scores and counts by name, e.g. win_rate, lc_win_rate, invalid_share."""
    outcomes: Sequence[ItemOutcome]
    details: Mapping[str, Any] = field(default_factory=dict)
    """What JSON can hold: names of settings, coefficients, notes."""


class BenchmarkProtocol(TypingProtocol):
    """Protocol of one benchmark with one judge's settings."""

    @property
    def rounds(self) -> int:
        """Requests to one question at most, the first one included."""
        ...

    def asks(self, item: Item, answer: Sequence[str]) -> list[Ask]:
        """Return the questions about a system's answers, one text a turn, to an item; none if nothing must be asked."""
        ...

    def settled(self, item: Item, answer: Sequence[str]) -> list[Verdict]:
        """Return the verdicts that need no question, e.g. of two equal answers."""
        ...

    def follow_up(self, ask: Ask, replies: Sequence[Reply]) -> Ask | None:
        """Return the next question if the replies so far have no verdict and the protocol asks again; else None."""
        ...

    def read(self, ask: Ask, replies: Sequence[Reply]) -> Verdict:
        """Return the verdict of the replies to a question and its follow-ups."""
        ...

    def summarise(
        self, items: Sequence[Item], answers: Mapping[str, Sequence[str]], verdicts: Sequence[Verdict]
    ) -> Summary:
        """Return scores and outcomes. `answers` are by item id; `verdicts` are those of all items and questions."""
        ...

    def native_files(
        self, items: Sequence[Item], answers: Mapping[str, Sequence[str]], transcript: Transcript
    ) -> Mapping[str, str]:
        """Return relative name -> content of the original tools' files. The content depends on the arguments alone."""
        ...
