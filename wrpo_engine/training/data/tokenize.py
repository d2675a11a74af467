"""Tokenisation of text rows: the chat template once, each response truncated alone, every dropped row counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from wrpo_engine.config import OptimizerParams, SftParams
from wrpo_engine.errors import DataError
from wrpo_engine.text.chat import Conversation
from wrpo_engine.text.conversations import Prompt
from wrpo_engine.text.plaintext import ControlTokenInTextError
from wrpo_engine.training.batch.rows import TokenRow

log = logging.getLogger("wrpo_engine")

MAX_CHANGED_SHARE = 0.1
"""Maximum share of rows with a response that the tokenizer changes; above it training stops."""
_NO_TEXT = "control token as text, which the tokenizer cannot encode"


@dataclass(frozen=True, slots=True)
class TextRow:
    """One prompt with its responses; the order of responses is that of `TokenRow`."""

    row_id: str
    prompt: Prompt
    responses: tuple[str, ...]


class Lengths(Protocol):
    """The longest rows."""

    @property
    def max_length(self) -> int:
        """Maximum tokens of prompt and response together."""
        ...

    @property
    def max_prompt_length(self) -> int:
        """Maximum tokens of the prompt."""
        ...


class Encoder(Protocol):
    """Encodes a prompt and its responses with the chat template."""

    def encode(self, prompt: Prompt, responses: Sequence[str]) -> Conversation:
        """Return prompt ids with exactly one BOS if the model has one, and response ids that end with end-of-turn."""
        ...

    def check(self, prompt_ids: list[int], response_ids: list[int], *, row: str) -> None:
        """Raise DataError naming `row` for a duplicate BOS or a number of end-of-turn tokens other than one."""
        ...


@dataclass(frozen=True, slots=True)
class TokenizedRows:
    """The rows that can be trained on, and the counts of truncated, dropped and changed rows."""

    rows: list[TokenRow]
    num_truncated: int = 0
    """Responses that were truncated to max_length; they keep their end-of-turn."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    changed: Counter[str] = field(default_factory=Counter)
    """Rows with a response whose ids do not decode to the original text, by kind of change."""
    first_changed: str | None = None
    """Id of the first changed row."""
    num_control_text: int = 0
    """Rows with a text that contains the name of a control token; it is encoded as text."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The origin of the rows for the manifest, as JSON values."""


def cut_response(response_ids: Sequence[int], limit: int) -> list[int]:
    """Return at most `limit` ids; a truncated response still ends with its end-of-turn."""
    if len(response_ids) <= limit:
        return list(response_ids)
    return [*response_ids[: limit - 1], response_ids[-1]]


def tokenize_rows(rows: Iterable[TextRow], encoder: Encoder, params: OptimizerParams | Lengths) -> TokenizedRows:
    """Tokenise every row.

    A response may use the tokens that its prompt leaves of `max_length`, independent of the other responses. A row is
    dropped and counted in these cases:

    - its prompt exceeds `max_prompt_length`, because truncating it would destroy the template;
    - a response is empty;
    - the prompt leaves fewer than two tokens, one of text and the end-of-turn;
    - a text contains the name of a control token that the tokenizer cannot encode as text.
    """
    kept: list[TokenRow] = []
    truncated = 0
    prompt_has_loss = isinstance(params, SftParams) and params.loss_tokens == "All"
    dropped: Counter[str] = Counter()
    changed: dict[str, str] = {}
    with_control_text = 0
    for row in rows:
        try:
            encoded = encoder.encode(row.prompt, row.responses)
        except ControlTokenInTextError:
            dropped[_NO_TEXT] += 1
            changed[row.row_id] = _NO_TEXT
            continue
        prompt_ids, responses = encoded.prompt_ids, encoded.responses
        room = params.max_length - len(prompt_ids)
        if len(prompt_ids) > params.max_prompt_length:
            dropped["prompt longer than maxPromptLength"] += 1
        elif not all(row.responses) or any(len(response.ids) < 2 for response in responses):
            dropped["empty response"] += 1
        elif room < 2:
            dropped["prompt leaves no room for a response in maxLength"] += 1
        else:
            for response in responses:
                encoder.check(prompt_ids, response.ids, row=f"row {row.row_id}")
            truncated += sum(len(response.ids) > room for response in responses)
            if changes := {response.change for response in responses if response.change is not None}:
                changed[row.row_id] = min(changes)
            cut = tuple(tuple(cut_response(response.ids, room)) for response in responses)
            with_control_text += encoded.has_control_text
            kept.append(TokenRow(row.row_id, tuple(prompt_ids), cut, prompt_has_loss))
    return TokenizedRows(
        kept, truncated, dropped, Counter(changed.values()), next(iter(changed), None), with_control_text
    )


def require_unchanged(tokenized: TokenizedRows, *, num_rows: int, artifact: str, field: str) -> None:
    """Raise DataError if the tokenizer changes responses of more than `MAX_CHANGED_SHARE` of the rows; log fewer.

    `field` is the field of the trained model in the experiment's spec.
    """
    count = tokenized.changed.total()
    if not count:
        return
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(tokenized.changed.items()))
    said = (
        f"{count} of {num_rows} rows of {artifact} ({count / num_rows:.1%}) have a response that the model's tokenizer "
        f"changes; the first is row {tokenized.first_changed}; changes: {reasons}"
    )
    if count <= MAX_CHANGED_SHARE * num_rows:
        log.warning("%s", said)
        return
    raise DataError(
        f"{said}. At most {MAX_CHANGED_SHARE:.0%} of the rows may differ",
        code="ResponsesChanged",
        field=field,
        hint="Train a model whose tokenizer keeps texts as they are, or rewrite or remove these responses.",
    )


def require_rows(tokenized: TokenizedRows, *, num_rows: int, artifact: str) -> None:
    """Raise DataError with the reasons if no row is left to train on."""
    if tokenized.rows:
        return
    if num_rows == 0:
        raise DataError(
            f"{artifact} holds no rows to train on",
            code="NoTrainingRows",
            hint="See the dropped counts in its manifest. Relax the curation or use more prompts.",
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(tokenized.dropped.items()))
    raise DataError(
        f"none of the {num_rows} rows of {artifact} can be trained on: {reasons}",
        code="NoTrainingRows",
        field="training.maxLength",
        hint="Raise maxLength or maxPromptLength.",
    )
