"""A reward model behind HTTP: one conversation a request, a bounded number of them at a time.

The request is that of vLLM's pooling API: POST {endpoint}/pooling with `model`, `messages` and `use_activation: false`
(the raw number, not its sigmoid). Replies of its /pooling, /classify and /score are supported. An endpoint whose path
ends with /pooling or /classify is used unchanged.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import TypeAlias

from wrpo_engine.scoring.endpoint_client import EndpointClient
from wrpo_engine.scoring.rewards import OnProgress, Pair, Reward, check_finite, row_name

_POLL_S = 0.2
_Results: TypeAlias = queue.Queue[tuple[int, Reward | BaseException]]


class EndpointScorer:
    """Scorer that sends requests to a server."""

    objectives: tuple[str, ...] = ()

    def __init__(self, client: EndpointClient, *, concurrency: int = 16) -> None:
        self.identity = client.identity
        self._client = client
        self._concurrency = concurrency

    def rewards(
        self, pairs: Sequence[Pair], names: Sequence[str] | None = None, on_progress: OnProgress | None = None
    ) -> list[Reward]:
        """Return the server's number for each pair, in order."""
        stopped = threading.Event()
        done = self._ask(pairs, names, stopped)
        rewards: dict[int, Reward] = {}
        try:
            while len(rewards) < len(pairs):
                try:
                    index, result = done.get(timeout=_POLL_S)
                except queue.Empty:
                    _report(on_progress, 0)
                    continue
                if isinstance(result, BaseException):
                    raise result
                rewards[index] = result
                _report(on_progress, 1)
        finally:
            stopped.set()
        scored = [rewards[index] for index in range(len(pairs))]
        check_finite(f"endpoint {self.identity}", scored, names, hint="Check the served model on this row.")
        return scored

    def _ask(self, pairs: Sequence[Pair], names: Sequence[str] | None, stopped: threading.Event) -> _Results:
        """Start the threads that ask the server; return the queue that gets each pair's reward or error."""
        done: _Results = queue.Queue()
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(pairs)):
            todo.put(index)

        def work() -> None:
            while not stopped.is_set():
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, self._client.reward(pairs[index], row_name(names, index), stopped)))
                except BaseException as error:  # noqa: BLE001 (raised by the thread that waits)
                    done.put((index, error))
                    return

        # Daemons: a stop request must not wait for a server that does not reply.
        for number in range(min(self._concurrency, len(pairs))):
            threading.Thread(target=work, name=f"reward-{number}", daemon=True).start()
        return done


def _report(on_progress: OnProgress | None, count: int) -> None:
    if on_progress is not None:
        on_progress(count)
