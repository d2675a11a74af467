"""Worker that ranks one case with both sides alternately, in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common.process import timed, worker_main
from benchmarks.ranking.cases import CASES, items_of, one_at_a_time, save_model


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
            ResolvedModel(Path(name), case.name, None), Budget(1224, 2048), batch_tokens=16384, dtype="float32"
        )

        def together() -> list[float]:
            return [pair.logit for compared in ranker.compare(items) for pair in compared.comparisons]

        for warm in (loop, together):
            warm()
        rounds = []
        worst = 0.0
        for _ in range(int(specification["rounds"])):
            (theirs, alone_s), (ours, together_s) = timed(loop, clock), timed(together, clock)
            worst = max(worst, *(abs(a - b) for a, b in zip(theirs, ours, strict=True)))
            rounds.append((alone_s, together_s))
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
        "largest_difference": worst,
    }


if __name__ == "__main__":
    worker_main(measure)
