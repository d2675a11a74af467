"""The keyed work queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from support.patience import LIMIT_S

from wrpo_operator.runtime.queue import Backoff, ReconcileQueue, RetryAfterError


def run_queue(
    work: Callable[[str], Awaitable[float | None]],
    script: Callable[[ReconcileQueue[str]], Awaitable[None]],
    *,
    backoff: Backoff | None = None,
    errors: list[tuple[str, float]] | None = None,
) -> None:
    async def main() -> None:
        queue: ReconcileQueue[str] = ReconcileQueue(
            work,
            backoff=backoff or Backoff(base_s=0.01, limit_s=0.04, jitter=0),
            rand=lambda: 0.0,
            on_error=lambda key, _error, pause: errors.append((key, pause)) if errors is not None else None,
        )
        workers = asyncio.create_task(queue.run(2))
        async with asyncio.timeout(LIMIT_S):
            await script(queue)
        workers.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await workers

    asyncio.run(main())


def test_a_key_is_never_worked_on_twice_at_once_and_not_lost_while_it_is() -> None:
    at_work, most, count = 0, 0, 0
    release = asyncio.Event()
    done = asyncio.Event()

    async def work(_key: str) -> None:
        nonlocal at_work, most, count
        at_work += 1
        most = max(most, at_work)
        await release.wait()
        at_work -= 1
        count += 1
        if count == 2:
            done.set()

    async def script(queue: ReconcileQueue[str]) -> None:
        queue.add("a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for _ in range(5):
            queue.add("a")
        release.set()
        await done.wait()

    run_queue(work, script)
    assert (most, count) == (1, 2)


def test_errors_come_back_later_and_later_and_a_success_forgets_them() -> None:
    calls = 0
    done = asyncio.Event()
    errors: list[tuple[str, float]] = []

    async def work(_key: str) -> None:
        nonlocal calls
        calls += 1
        if calls in {1, 2, 3, 4, 6}:
            raise ValueError("broken")
        if calls == 7:
            done.set()

    async def script(queue: ReconcileQueue[str]) -> None:
        queue.add("a")
        while calls < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)
        queue.add("a")
        await done.wait()

    run_queue(work, script, errors=errors)
    assert errors == [("a", 0.01), ("a", 0.02), ("a", 0.04), ("a", 0.04), ("a", 0.01)]


def test_the_servers_retry_after_is_respected() -> None:
    errors: list[tuple[str, float]] = []
    failed = asyncio.Event()

    async def work(_key: str) -> None:
        failed.set()
        raise RetryAfterError(7.0)

    async def script(queue: ReconcileQueue[str]) -> None:
        queue.add("a")
        await failed.wait()
        await asyncio.sleep(0)

    run_queue(work, script, errors=errors)
    assert errors == [("a", 7.0)]


def test_of_two_delays_the_earlier_counts() -> None:
    order: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        order.append(key)
        if len(order) == 2:
            done.set()

    async def script(queue: ReconcileQueue[str]) -> None:
        queue.add_after("slow", 0.06)
        queue.add_after("twice", 30)
        queue.add_after("twice", 0.01)
        queue.add_after("twice", 30)
        await done.wait()

    run_queue(work, script)
    assert order == ["twice", "slow"]


def test_work_is_repeated_after_the_time_it_asks_for() -> None:
    calls = 0
    done = asyncio.Event()

    async def work(_key: str) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 3:
            done.set()
        return 0.005

    async def script(queue: ReconcileQueue[str]) -> None:
        queue.add("a")
        await done.wait()

    run_queue(work, script)
    assert calls >= 3


def test_jitter_only_shortens_the_delay() -> None:
    backoff = Backoff(base_s=2, limit_s=100, jitter=0.25)
    assert [backoff.delay_s(failures, lambda: 0.0) for failures in (1, 2, 3, 20)] == [2, 4, 8, 100]
    assert backoff.delay_s(1, lambda: 1.0) == 1.5
