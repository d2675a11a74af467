"""From text rows to token rows: chat template once, each response cut by itself, nothing dropped silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from wrpo_engine.config import OptimizerParams, SftParams
from wrpo_engine.errors import DataError
from wrpo_engine.training.rows import TokenRow


@dataclass(frozen=True, slots=True)
class TextRow:
    """One prompt with its responses; the order of responses is that of `TokenRow`."""

    row_id: str
    prompt: str
    responses: tuple[str, ...]


class Encoder(Protocol):
    """Turns a prompt and a response into ids through the chat template."""

    def encode(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """Return (prompt ids with exactly one BOS if the model has one, response ids with one end-of-turn, last)."""
        ...

    def check(self, prompt_ids: list[int], response_ids: list[int], *, row: str) -> None:
        """Raise DataError naming `row` for a doubled BOS or another number of end-of-turn tokens than one."""
        ...


@dataclass(frozen=True, slots=True)
class TokenizedRows:
    """The rows that can be trained on and what became of the others."""

    rows: list[TokenRow]
    num_truncated: int = 0
    """Responses that were cut to max_length; they keep their end-of-turn."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest says about where the rows come from; JSON values."""


def cut_response(response_ids: Sequence[int], limit: int) -> list[int]:
    """Return at most `limit` ids; a cut response still ends with its end-of-turn."""
    if len(response_ids) <= limit:
        return list(response_ids)
    return [*response_ids[: limit - 1], response_ids[-1]]


def tokenize_rows(rows: Iterable[TextRow], encoder: Encoder, params: OptimizerParams) -> TokenizedRows:
    """Tokenise every row.

    A response gets the room that its prompt leaves of `max_length`, whatever its siblings' lengths. A row is dropped
    and counted if its prompt exceeds `max_prompt_length` (cutting it would destroy the template), if a response is
    empty, or if the prompt leaves less than two tokens, one of text and the end-of-turn.
    """
    kept: list[TokenRow] = []
    truncated = 0
    prompt_has_loss = isinstance(params, SftParams) and params.loss_tokens == "All"
    dropped: Counter[str] = Counter()
    for row in rows:
        pairs = [encoder.encode(row.prompt, response) for response in row.responses]
        prompt_ids = pairs[0][0]
        room = params.max_length - len(prompt_ids)
        if len(prompt_ids) > params.max_prompt_length:
            dropped["prompt longer than maxPromptLength"] += 1
        elif any(len(response_ids) < 2 for _, response_ids in pairs):
            dropped["empty response"] += 1
        elif room < 2:
            dropped["prompt leaves no room for a response in maxLength"] += 1
        else:
            for _, response_ids in pairs:
                encoder.check(prompt_ids, response_ids, row=f"row {row.row_id}")
            truncated += sum(len(response_ids) > room for _, response_ids in pairs)
            responses = tuple(tuple(cut_response(response_ids, room)) for _, response_ids in pairs)
            kept.append(TokenRow(row.row_id, tuple(prompt_ids), responses, prompt_has_loss))
    return TokenizedRows(kept, truncated, dropped)


def require_rows(tokenized: TokenizedRows, *, num_rows: int, artifact: str) -> None:
    """Raise DataError if nothing is left to train on, saying why."""
    if tokenized.rows:
        return
    if num_rows == 0:
        raise DataError(
            f"{artifact} holds no rows to train on",
            code="NoTrainingRows",
            hint="See the dropped counts in its manifest; loosen curation or use more prompts.",
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(tokenized.dropped.items()))
    raise DataError(
        f"none of the {num_rows} rows of {artifact} can be trained on: {reasons}",
        code="NoTrainingRows",
        field="training.maxLength",
        hint="Raise maxLength or maxPromptLength.",
    )
