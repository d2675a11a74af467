"""Rewards for many threads, computed together: what waits while one batch is scored is the next batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from wrpo_engine.scoring.rewards import Pair, Scorer

MAX_PAIRS = 256


class BatchingScorer:
    """Safe to use from several threads; the scorer is used by one thread at a time."""

    def __init__(self, scorer: Scorer, *, max_pairs: int = MAX_PAIRS) -> None:
        self.identity = scorer.identity
        self._scorer = scorer
        self._max_pairs = max_pairs
        self._waiting: list[tuple[Sequence[Pair], Future[list[float]]]] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="scorer", daemon=True).start()

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the reward of each pair; raise what the scorer raises."""
        result: Future[list[float]] = Future()
        with self._changed:
            self._waiting.append((pairs, result))
            self._changed.notify()
        return result.result()

    def _work(self) -> None:
        while True:
            batch = self._next()
            pairs = [pair for asked, _ in batch for pair in asked]
            try:
                scores = [reward.score for reward in self._scorer.rewards(pairs)]
            except Exception as error:  # noqa: BLE001 (raised by the threads that wait)
                self._fail(batch, error)
                continue
            for asked, result in batch:
                result.set_result(scores[: len(asked)])
                scores = scores[len(asked) :]

    def _fail(self, batch: Sequence[tuple[Sequence[Pair], Future[list[float]]]], error: Exception) -> None:
        """Let one question's fault not be that of others: score each alone."""
        for asked, result in batch:
            if len(batch) == 1:
                result.set_exception(error)
                continue
            try:
                result.set_result([reward.score for reward in self._scorer.rewards(asked)])
            except Exception as own:  # noqa: BLE001 (raised by the thread that waits)
                result.set_exception(own)

    def _next(self) -> list[tuple[Sequence[Pair], Future[list[float]]]]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            count = total = 0
            while count < len(self._waiting) and (not count or total < self._max_pairs):
                total += len(self._waiting[count][0])
                count += 1
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            return batch
