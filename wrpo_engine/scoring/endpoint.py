"""A reward model behind HTTP: one conversation a request, a bounded number of them at a time.

The request is that of vLLM's pooling API: POST {endpoint}/pooling with `model`, `messages` and `use_activation: false`
(the raw number, not its sigmoid). Replies of its /pooling, /classify and /score are supported. An endpoint whose path
ends with /pooling or /classify is used unchanged.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from wrpo_engine.scoring.endpoint_client import EndpointClient
from wrpo_engine.scoring.rewards import OnProgress, Pair, Reward, check_finite, row_name

_POLL_S = 0.2


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
        rewards: list[Reward | None] = [None] * len(pairs)
        done: queue.Queue[tuple[int, Reward | BaseException]] = queue.Queue()
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(pairs)):
            todo.put(index)
        stopped = threading.Event()

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
        try:
            waiting = len(pairs)
            while waiting:
                try:
                    index, result = done.get(timeout=_POLL_S)
                except queue.Empty:
                    if on_progress is not None:
                        on_progress(0)
                    continue
                if isinstance(result, BaseException):
                    raise result
                rewards[index] = result
                waiting -= 1
                if on_progress is not None:
                    on_progress(1)
        finally:
            stopped.set()
        scored = [reward for reward in rewards if reward is not None]
        check_finite(f"endpoint {self.identity}", scored, names, hint="Check the served model on this row.")
        return scored
