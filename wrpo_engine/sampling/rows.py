"""Responses in progress with Transformers: their order, batches and ends. No model is used here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from wrpo_engine.sampling.sampler import FinishReason, SampleRequest, SamplerSettings

Decode = Callable[[Sequence[int]], str]


@dataclass(eq=False)
class Row:
    """One response in progress. Its random numbers depend on its own seed, not on the other rows."""

    request: SampleRequest
    index: int
    limit: int
    """Tokens it may have."""
    draws: np.random.Generator
    temperature: float = 1.0
    """0: greedy."""
    tokens: list[int] = field(default_factory=list)
    finished: FinishReason | None = None
    text: str | None = None
    """Set where a stop text ended it."""

    @property
    def seed(self) -> int:
        """Seed of the response's random numbers."""
        return self.request.seed + self.index

    @property
    def ids(self) -> list[int]:
        """The model's next input: the prompt and the response so far."""
        return [*self.request.prompt_token_ids, *self.tokens]

    def add(self, token: int, stop_ids: frozenset[int], stops: Sequence[str], decode: Decode) -> None:
        """Append a token; finish the row at a stop token, a stop text or the limit."""
        self.tokens.append(token)
        if token in stop_ids:
            self.finished = FinishReason.STOP
        elif stops and (text := cut_at_stop(self.tokens, stops, decode)) is not None:
            self.finished, self.text = FinishReason.STOP, text
        elif len(self.tokens) >= self.limit:
            self.finished = FinishReason.LENGTH


def rows_of(requests: Sequence[SampleRequest], settings: SamplerSettings) -> list[Row]:
    """Return one row for each response, the longest prompts first; a prompt's rows are adjacent."""
    rows: list[Row] = []
    for request in sorted(requests, key=lambda request: (-len(request.prompt_token_ids), request.key)):
        limit, temperature = settings.max_tokens_of(request), settings.temperature_of(request)
        if settings.max_model_length is not None:
            limit = min(limit, settings.max_model_length - len(request.prompt_token_ids))
        for index in range(1 if settings.is_greedy(request) else request.num_samples):
            draws = np.random.Generator(np.random.Philox(key=request.seed + index))
            finished = None if limit > 0 else FinishReason.LENGTH
            rows.append(Row(request, index, limit, draws, temperature, finished=finished))
    return rows


def take_batch(waiting: deque[Row], budget: int, *, expected: int = 128) -> list[Row]:
    """Take rows from the left as long as rows times tokens stay below the budget; at least one.

    A row counts with its tokens so far and `expected` more: most responses are far shorter than they may be.
    A batch that grows beyond the budget all the same gives rows back (`park`).
    """
    batch: list[Row] = []
    width = 0
    while waiting:
        row = waiting[0]
        tokens = len(row.request.prompt_token_ids) + len(row.tokens)
        width = max(width, tokens + min(expected, row.limit - len(row.tokens)))
        if batch and (len(batch) + 1) * width > budget:
            break
        batch.append(waiting.popleft())
    return batch


def park(running: list[Row], waiting: deque[Row], width: int, budget: int) -> list[Row]:
    """Return the rows that continue, so that `width` tokens each keep within the budget; the others keep their tokens.

    Half of them stay at most, so that the next few steps need no parking.
    """
    if len(running) == 1 or len(running) * width <= budget:
        return running
    staying = max(1, min(len(running) // 2, budget // width))
    waiting.extendleft(reversed(running[staying:]))
    return running[:staying]


def shared_prefixes(batch: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """Return rows with different ids, and for every row of the batch which of them has the same: it is read once."""
    heads: list[Row] = []
    places: list[int] = []
    fresh: dict[str, int] = {}
    for row in batch:
        place = fresh.get(row.request.key) if not row.tokens else None
        if place is None:
            place = len(heads)
            heads.append(row)
            if not row.tokens:
                fresh[row.request.key] = place
        places.append(place)
    return heads, places


def cut_at_stop(tokens: Sequence[int], stops: Sequence[str], decode: Decode) -> str | None:
    """Return the text before the first stop text, or None if there is none in it."""
    # Only the end is new. A character may take several tokens, none of which is a text by itself.
    tail = 4 * max(len(stop) for stop in stops) + 8
    if len(tokens) > tail and not any(stop in decode(tokens[-tail:]) for stop in stops):
        return None
    text = decode(tokens)
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(found)] if found else None
