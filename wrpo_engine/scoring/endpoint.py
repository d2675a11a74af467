"""A reward model behind HTTP: one conversation a request, a bounded number of them at a time.

The request is that of vLLM's pooling API: POST {endpoint}/pooling with `model`, `messages` and `use_activation: false`
(the raw number, not its sigmoid). Replies of its /pooling, /classify and /score are supported. An endpoint whose path
ends with /pooling or /classify is used unchanged.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from wrpo_engine.scoring.endpoint_client import EndpointClient
from wrpo_engine.scoring.in_flight import Workers, in_flight
from wrpo_engine.scoring.rewards import OnProgress, Pair, Reward, check_finite, row_name


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
        rewards: dict[int, Reward] = {}
        answers = in_flight(
            lambda index: self._client.reward(pairs[index], row_name(names, index), stopped),
            len(pairs),
            Workers(threads=self._concurrency, stopped=stopped),
            on_wait=lambda: _report(on_progress, 0),
        )
        # Closed at once if a report of progress raises.
        with contextlib.closing(answers):
            for index, reward in answers:
                rewards[index] = reward
                _report(on_progress, 1)
        scored = [rewards[index] for index in range(len(pairs))]
        check_finite(f"endpoint {self.identity}", scored, names, hint="Check the served model on this row.")
        return scored


def _report(on_progress: OnProgress | None, count: int) -> None:
    if on_progress is not None:
        on_progress(count)
