"""Parts of requests that go through a sampler together; each is published when its last response is there."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

import polars as pl

from wrpo_engine.errors import TemporaryError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.process.hang_watch import HangWatch
from wrpo_engine.sampling.publishing import Publisher
from wrpo_engine.sampling.sampler import Backend, Sampler, SampleRequest
from wrpo_engine.stage import StageContext

log = logging.getLogger("wrpo_engine")


class Result(Protocol):
    """What a sampler gives for a request."""

    @property
    def key(self) -> str:
        """Name of the request."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens that were computed for it."""
        ...


R = TypeVar("R", bound=Result)
R_contra = TypeVar("R_contra", bound=Result, contravariant=True)


class OpenPart(Protocol[R_contra]):
    """A part with unfinished prompts."""

    @property
    def name(self) -> str:
        """Name of the part's file."""
        ...

    @property
    def requests(self) -> Sequence[SampleRequest]:
        """The requests with which the part begins."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows of the whole part."""
        ...

    @property
    def num_prompts(self) -> int:
        """Prompts of the whole part."""
        ...

    @property
    def num_done(self) -> int:
        """Prompts that are finished, or need no response."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether all rows are there."""
        ...

    def take(self, result: R_contra, /) -> Sequence[SampleRequest]:
        """Keep the result of a request, and return the requests that follow it."""
        ...

    def frame(self) -> pl.DataFrame:
        """Return the rows of the complete part."""
        ...


@contextmanager
def running(
    ctx: StageContext, model: ResolvedModel, load: Callable[[Callable[[], None]], Sampler]
) -> Iterator[Sampler]:
    """Load a sampler and close it afterwards. The process ends if the sampler hangs.

    `load` gets the function that the sampler calls at every step; it raises Interrupted on a stop request.
    """
    ctx.stop.raise_if_requested()
    watch = HangWatch(f"sampling from {model.identity}", ctx.config.runtime.hang_timeout_seconds, ctx.environ)

    def poll() -> None:
        watch.beat()
        ctx.stop.raise_if_requested()

    sampler = load(poll)
    try:
        with watch:
            yield sampler
    finally:
        sampler.close()


def stream_parts(
    ctx: StageContext,
    parts: Sequence[OpenPart[R]],
    compute: Callable[[deque[SampleRequest]], Iterator[R]],
    *,
    backend: Backend,
    finished: int = 0,
) -> int:
    """Feed all parts to a sampler at once, so that no batch waits for a part's slowest response.

    `compute` is the sampler's `sample` or `prompt_logps`. `finished` prompts of this shard were finished by an earlier
    attempt. Returns the rows written.
    """
    unfinished = {part.name: part for part in parts}
    part_of = {request.key: part for part in parts for request in part.requests}
    total = finished + sum(part.num_prompts for part in parts)
    done = finished + sum(part.num_done for part in parts)
    started, tokens = time.monotonic(), 0
    ctx.progress.update(done, total)

    queue = deque(request for part in parts for request in part.requests)
    with Publisher() as publisher:
        for part in [part for part in parts if part.is_complete]:
            publisher.submit(partial(_publish, ctx, unfinished.pop(part.name)))
        for result in compute(queue):
            ctx.stop.raise_if_requested()
            part = part_of.pop(result.key)
            before = part.num_done
            more = part.take(result)
            part_of.update((request.key, part) for request in more)
            queue.extendleft(reversed(more))
            done += part.num_done - before
            tokens += result.num_tokens
            if part.is_complete:
                publisher.submit(partial(_publish, ctx, unfinished.pop(part.name)))
            rate = tokens / max(time.monotonic() - started, 1e-9)
            ctx.progress.update(done, total, metrics={"tokens_per_second": rate})
    if unfinished:
        names = ", ".join(unfinished)
        raise TemporaryError(
            f"{backend} ended without a response to every prompt; unfinished: {names}", code="EngineDied"
        )
    return sum(part.num_rows for part in parts)


def _publish(ctx: StageContext, part: OpenPart[R]) -> None:
    ctx.output.publish(part.name, part.frame().write_parquet)
