"""What one thread tells another's event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from wrpo_operator.runtime.watching import Handover

CALLS = 20_000


def test_every_call_is_carried_out_in_its_order_and_the_loop_is_woken_less_often_than_called() -> None:
    carried_out: list[int] = []
    wakes = 0

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon_threadsafe

        def counted(*arguments: object) -> object:
            nonlocal wakes
            wakes += 1
            return call_soon(*arguments)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]
        handover, done = Handover(loop), asyncio.Event()

        def tell() -> None:
            for number in range(CALLS):
                handover.call(carried_out.append, number)
            handover.call(done.set)

        thread = threading.Thread(target=tell)
        thread.start()
        await asyncio.wait_for(done.wait(), 60)
        thread.join()

    asyncio.run(main())
    assert carried_out == list(range(CALLS))
    assert 1 <= wakes <= CALLS


def test_an_error_in_one_call_loses_none_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    carried_out: list[str] = []

    def fail() -> None:
        raise ValueError("broken")

    async def main() -> None:
        handover = Handover(asyncio.get_running_loop())
        handover.call(carried_out.append, "before")
        handover.call(fail)
        handover.call(carried_out.append, "after")
        await asyncio.sleep(0)

    asyncio.run(main())
    assert carried_out == ["before", "after"]
    assert "broken" in caplog.text


def test_a_closed_loop_is_told_of() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError):
        Handover(loop).call(print)
