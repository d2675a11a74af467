"""Division of prompts into parts and requests: shard of a part, room in the context, seeds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from wrpo_engine.artifacts.parts import part_name
from wrpo_engine.errors import DataError
from wrpo_engine.sampling.sampler import SampleRequest, prompt_seed
from wrpo_engine.text.conversations import Prompt
from wrpo_engine.text.plaintext import ControlTokenInTextError

T = TypeVar("T")
Row: TypeAlias = tuple[str, Prompt]
"""(prompt id, prompt)."""


@dataclass(frozen=True)
class Part(Generic[T]):
    """Prompts, or other units of work, whose results are committed together."""

    index: int
    rows: tuple[T, ...]

    @property
    def name(self) -> str:
        """Name of the part's file."""
        return part_name(self.index)


def parts_of(rows: Sequence[T], rows_per_part: int) -> list[Part[T]]:
    """Divide the rows into parts of `rows_per_part`, the last one shorter."""
    starts = range(0, len(rows), rows_per_part)
    return [Part(index, tuple(rows[start : start + rows_per_part])) for index, start in enumerate(starts)]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a prompt must fit. `context` is None if the model does not say."""

    context: int | None
    skip_too_long: bool
    model: str


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How responses to a prompt are drawn: their number, and what the prompt's seed derives from."""

    num_samples: int
    seed: int
    seed_model: str
    """Name of the model in seeds."""


@dataclass(frozen=True, kw_only=True)
class PartRequests:
    """A part's requests, and the prompts that do not fit."""

    part: Part[Row]
    requests: tuple[SampleRequest, ...]
    too_long: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the part: one for each response, and one for each prompt that does not fit."""
        return sum(request.num_samples for request in self.requests) + len(self.too_long)


def requests_of(
    part: Part[Row],
    *,
    encode: Callable[[Prompt], list[int]],
    draws: Draws,
    limits: Limits,
) -> PartRequests:
    """Turn a part's prompts into requests; a prompt that leaves no room for a response fails or is skipped."""
    requests: list[SampleRequest] = []
    too_long: list[str] = []
    for prompt_id, prompt in part.rows:
        try:
            ids = encode(prompt)
        except ControlTokenInTextError as error:
            raise error.of(f"prompt {prompt_id}") from error
        if limits.context is not None and len(ids) >= limits.context:
            if not limits.skip_too_long:
                raise prompt_too_long(prompt_id, len(ids), limits)
            too_long.append(prompt_id)
            continue
        requests.append(
            SampleRequest(
                key=prompt_id,
                prompt_token_ids=ids,
                num_samples=draws.num_samples,
                seed=prompt_seed(draws.seed, draws.seed_model, prompt_id),
                group=part.index,
            )
        )
    return PartRequests(part=part, requests=tuple(requests), too_long=tuple(too_long))


def prompt_too_long(prompt_id: str, length: int, limits: Limits) -> DataError:
    """Return the error for a prompt of `length` tokens that does not fit the model's context."""
    return DataError(
        f"prompt {prompt_id} has {length} tokens with the chat template, but the context of {limits.model} "
        f"holds {limits.context} for prompt and response together",
        code="PromptTooLong",
        field="sampling.onPromptTooLong",
        hint="Set sampling.onPromptTooLong: Skip to leave such prompts out, or raise sampling.maxModelLength.",
    )
