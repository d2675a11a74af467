"""Concurrent writes and minimal merge patches."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from wrpo_operator.runtime.resources import JsonObject

T = TypeVar("T")
TOGETHER = 8
"""Maximum concurrent requests of one experiment."""


async def together(writes: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run independent writes with limited concurrency; all are tried before an error is raised."""
    limit = asyncio.Semaphore(TOGETHER)

    async def carry_out(write: Coroutine[Any, Any, T]) -> T:
        async with limit:
            return await write

    ends = await asyncio.gather(*(carry_out(write) for write in writes), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return [end for end in ends if not isinstance(end, BaseException)]


def merge_patch_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> JsonObject:
    """Return the JSON merge patch that converts `old` to `new`; removed keys become None."""
    patch: JsonObject = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = merge_patch_of(before, value)
            if inner:
                patch[key] = inner
        elif key not in old or before != value:
            patch[key] = value
    return patch
