"""Worker that scores one case with both sides alternately, in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common.process import timed, worker_main
from benchmarks.scoring.cases import CASES, one_at_a_time, pairs_of, save_model


def measure(specification: dict[str, Any]) -> dict[str, Any]:
    import torch

    from wrpo_engine.hub.models import ResolvedModel
    from wrpo_engine.scoring.reward_model import RewardScorer

    torch.set_num_threads(int(specification["threads"]))
    case = next(case for case in CASES if case.name == specification["case"])
    clock = time.perf_counter if specification["wall_clock"] else time.process_time
    with tempfile.TemporaryDirectory(prefix="wrpo-scoring-") as name:
        save_model(case, Path(name))
        pairs = pairs_of(case)
        loop = one_at_a_time(Path(name), pairs)
        scorer = RewardScorer(
            ResolvedModel(Path(name), case.name, None), max_length=4096, batch_tokens=16384, dtype="float32"
        )
        for warm in (loop, lambda: scorer.score(pairs[:5])):
            warm()
        rounds = []
        worst = 0.0
        for _ in range(int(specification["rounds"])):
            (theirs, alone_s), (ours, together_s) = timed(loop, clock), timed(lambda: scorer.score(pairs), clock)
            worst = max(worst, *(abs(a - b) for a, b in zip(theirs, ours, strict=True)))
            rounds.append((alone_s, together_s))
        tokens = sum(reward.num_tokens or 0 for reward in scorer.rewards(pairs))
        computed = sum(group for group in _computed(scorer, pairs))
    alone, together = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "case": case.name,
        "pairs": len(pairs),
        "tokens": tokens,
        "computed_tokens": computed,
        "loop_s": alone,
        "scorer_s": together,
        "speedups": [a / b for a, b in rounds],
        "largest_difference": worst,
    }


def _computed(scorer: Any, pairs: list[tuple[str, str]]) -> list[int]:
    from wrpo_engine.scoring.packed import group_rows

    rows = [row.ids for row in scorer._encoder.encode(pairs)]  # noqa: SLF001 (what it computes is no result of scoring)
    return [group.tokens for group in group_rows(rows, [prompt for prompt, _ in pairs], 16384)]


if __name__ == "__main__":
    worker_main(measure)
