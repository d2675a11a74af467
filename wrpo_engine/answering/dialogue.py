"""Conversations of one model with the items of a part, turn by turn. No model is used here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.bundles.items import BenchItem, Message
from wrpo_engine.sampling.requests import Part
from wrpo_engine.sampling.sampler import FinishReason, Sample, Sampled, SampleRequest
from wrpo_engine.seeds import seed_of

_READ_AGAIN = 3
"""Tokens that a generated token may be when it is read: half a character is read as one of three bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model reads before it answers."""

    ids: Sequence[int]
    references_cut: int = 0
    """References that were truncated."""


Read: TypeAlias = Callable[[BenchItem, int, Sequence[Message]], Prompt]
"""Returns the prompt of an item's turn (from 0) with the conversation that ends with it, the item's own messages and
the model's earlier answers included."""
TooLong: TypeAlias = Callable[[BenchItem, int, int], None]
"""Called with an item, a turn and a length in tokens that leaves no room for an answer; may raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the items of a benchmark are answered."""

    read: Read
    too_long: TooLong
    num_samples: int
    seed: int
    seed_model: str
    uses_item_temperature: bool = False


def conversation(item: BenchItem, answers: Sequence[str]) -> list[Message]:
    """Return an item's conversation up to the turn after these answers."""
    messages = list(item.messages)
    for question, answer in zip(item.turns, answers, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": item.turns[len(answers)]}]


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of one sample of an item: the model's answer to what the user says in it."""

    item: BenchItem
    number: int
    samples: tuple[int, ...]
    """Samples that the request is about: all of them in the first turn, which they share, and one in the others."""
    prompt: Prompt

    @property
    def key(self) -> str:
        """Name of the request, for messages; unique in a benchmark, because an item's index is."""
        later = f", turn {self.number + 1}, sample {self.samples[0]}" if self.number else ""
        return f"{self.item.index}:{self.item.item_id}{later}"


@dataclass
class PartDialogues:
    """The conversations of a part. Every sample of every item has one answer in each turn in the end."""

    part: Part[BenchItem]
    rules: Rules
    context: int | None
    """Tokens of prompt and answer together."""
    requests: list[SampleRequest] = field(default_factory=list)
    """The first turns."""
    _open: dict[str, Turn] = field(default_factory=dict)
    _answers: dict[tuple[str, int, int], tuple[Sample, Prompt]] = field(default_factory=dict)
    """(item, sample, turn) -> answer."""

    def __post_init__(self) -> None:
        everyone = tuple(range(self.rules.num_samples))
        for item in self.part.rows:
            self.requests += self._ask(item, everyone, [])

    @property
    def name(self) -> str:
        """Name of the part's file."""
        return self.part.name

    @property
    def num_rows(self) -> int:
        """Answers of the whole part."""
        return sum(len(item.turns) for item in self.part.rows) * self.rules.num_samples

    @property
    def num_prompts(self) -> int:
        """Turns of the whole part, of every sample."""
        return self.num_rows

    @property
    def num_done(self) -> int:
        """Answers that are there; those that are left out count when the part is complete."""
        return self.num_rows if self.is_complete else len(self._answers)

    @property
    def is_complete(self) -> bool:
        """Whether no request is open."""
        return not self._open

    def take(self, sampled: Sampled, /) -> list[SampleRequest]:
        """Keep the answers of a turn, and return the requests for the next one."""
        turn = self._open.pop(sampled.key)
        more: list[SampleRequest] = []
        for number, sample in zip(turn.samples, sampled.samples, strict=True):
            self._answers[turn.item.item_id, number, turn.number] = sample, turn.prompt
            if turn.number + 1 < len(turn.item.turns):
                earlier = range(turn.number + 1)
                texts = [self._answers[turn.item.item_id, number, place][0].text for place in earlier]
                more += self._ask(turn.item, (number,), texts)
        return more

    def _ask(self, item: BenchItem, samples: tuple[int, ...], answers: Sequence[str]) -> list[SampleRequest]:
        """Return the request for the turn after these answers; none if its prompt leaves no room for an answer."""
        number = len(answers)
        prompt = self.rules.read(item, number, conversation(item, answers))
        if self.context is not None and len(prompt.ids) >= self.context:
            self.rules.too_long(item, number, len(prompt.ids))
            return []
        turn = Turn(item, number, samples, prompt)
        self._open[turn.key] = turn
        return [
            SampleRequest(
                key=turn.key,
                prompt_token_ids=prompt.ids,
                num_samples=len(samples),
                seed=turn_seed(self.rules, item.item_id, number) + samples[0],
                temperature=item.temperature if self.rules.uses_item_temperature else None,
                group=self.part.index,
            )
        ]

    def frame(self) -> pl.DataFrame:
        """Return one row for each answer by item, sample and turn; one that was left out has no text and no tokens."""
        rows = [
            self._row(item, sample, turn)
            for item in self.part.rows
            for sample in range(self.rules.num_samples)
            for turn in range(len(item.turns))
        ]
        return pl.DataFrame(rows, schema=records.ANSWERS, orient="row")

    def _row(self, item: BenchItem, sample: int, turn: int) -> tuple[object, ...]:
        found = self._answers.get((item.item_id, sample, turn))
        if found is None:
            return (item.item_id, turn, sample, "", 0, FinishReason.PROMPT_TOO_LONG.value, 0, 0, 0)
        answer, prompt = found
        return (
            item.item_id,
            turn,
            sample,
            answer.text,
            answer.num_tokens,
            answer.finish_reason.value,
            answer.seed,
            len(prompt.ids),
            prompt.references_cut,
        )


def turn_seed(rules: Rules, item_id: str, turn: int) -> int:
    """Return the seed of the first sample's answer in a turn; sample i has this and i.

    In the first turn it is that of sampling, `prompt_seed`.
    """
    later = (turn,) if turn else ()
    return seed_of(rules.seed, rules.seed_model, item_id, *later)


def longest_prompt(items: Sequence[BenchItem], rules: Rules, max_tokens: int, requests: Sequence[SampleRequest]) -> int:
    """Return the tokens of the longest prompt that these items may have: of the first turns, and of later ones.

    Answers are not known yet: each counts as the longest one may be when it is read.
    """
    first = (len(request.prompt_token_ids) for request in requests)
    later = (
        len(rules.read(item, turn, conversation(item, [""] * turn)).ids) + _READ_AGAIN * turn * max_tokens
        for item in items
        for turn in range(1, len(item.turns))
    )
    return max([*first, *later], default=0)
