"""Worker that ranks one case with both sides alternately, in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common.process import timed, worker_main
from benchmarks.ranking.cases import CASES, PUBLISHED_LENGTH, items_of, one_at_a_time, save_model

_PUBLISHED_PAIRS = 3
"""Pairs of the published script: they take seconds each."""


def measure(specification: dict[str, Any]) -> dict[str, Any]:
    import torch

    from wrpo_engine.hub.models import ResolvedModel
    from wrpo_engine.selecting.pairrm import PairRanker
    from wrpo_engine.selecting.pairrm_encoding import Budget

    torch.set_num_threads(int(specification["threads"]))
    case = next(case for case in CASES if case.name == specification["case"])
    clock = time.perf_counter if specification["wall_clock"] else time.process_time
    with tempfile.TemporaryDirectory(prefix="wrpo-ranking-") as name:
        save_model(case, Path(name))
        items = items_of(case)
        loop = one_at_a_time(Path(name), items)
        ranker = PairRanker(
            ResolvedModel(Path(name), case.name, None),
            Budget(1224, PUBLISHED_LENGTH),
            batch_tokens=16384,
            dtype="float32",
        )

        def together() -> list[float]:
            return [pair.logit for compared in ranker.compare(items) for pair in compared.comparisons]

        published = one_at_a_time(Path(name), items, padded_to=PUBLISHED_LENGTH, pairs=_PUBLISHED_PAIRS)
        for warm in (loop, together, published):
            warm()
        rounds = []
        worst = 0.0
        for _ in range(int(specification["rounds"])):
            (theirs, alone_s), (ours, together_s) = timed(loop, clock), timed(together, clock)
            worst = max(worst, *(abs(a - b) for a, b in zip(theirs, ours, strict=True)))
            rounds.append((alone_s, together_s))
        found, published_s = timed(published, clock)
        worst = max(worst, *(abs(a - b) for a, b in zip(found, ours, strict=False)))
        pairs = [pair for compared in ranker.compare(items) for pair in compared.comparisons]
    alone, batched = (statistics.median(times) for times in zip(*rounds, strict=True))
    tokens, padding = sum(pair.tokens for pair in pairs), sum(pair.padding for pair in pairs)
    return {
        "case": case.name,
        "pairs": len(pairs),
        "tokens": tokens,
        "padding_share": padding / (tokens + padding),
        "loop_s": alone,
        "ranker_s": batched,
        "speedups": [a / b for a, b in rounds],
        "published_speedup": (published_s / len(found)) / (batched / len(pairs)),
        "largest_difference": worst,
    }


if __name__ == "__main__":
    worker_main(measure)
