"""Part: reward scoring of five responses a prompt, by padded rows, packed rows and vLLM's pooling runner."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.layers import replaced
from benchmarks.gpu.models import save_model
from benchmarks.gpu.rows import Figures
from benchmarks.gpu.work import Work, part_main, rounded, seconds_of
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.scoring import network
from wrpo_engine.scoring.reward_model import RewardScorer

RESPONSES = 5
CONTEXT = 4096
BATCH_TOKENS = 16384
Pair = tuple[str, str]


def act(work: Work) -> None:
    pairs = pairs_of(work.pick(160, 4), work.pick(1, 8))
    dtype = "bfloat16" if work.device.type == "cuda" else "float32"
    with tempfile.TemporaryDirectory(prefix="wrpo-bench-model-") as name:
        directory = Path(name)
        save_model(directory, work.size, dtype, context=CONTEXT, is_classifier=True)
        rows = encoded(directory, pairs)
        expected: list[float] = []
        for case, make in SIDES.items():
            work.rows.measure(
                case,
                lambda make=make: measure(make(directory, rows), pairs, rows, expected),  # type: ignore[misc]
            )


def pairs_of(prompts: int, scale: int) -> list[Pair]:
    """Return pairs of UltraFeedback's lengths in characters, which are the tokens here."""
    draw = random.Random(7)

    def text(low: int, high: int) -> str:
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=draw.randint(low // scale, high // scale)))

    return [(prompt, text(100, 900)) for prompt in (text(100, 600) for _ in range(prompts)) for _ in range(RESPONSES)]


def encoded(directory: Path, pairs: Sequence[Pair]) -> list[list[int]]:
    """Return the token ids that the scorer computes for every pair."""
    return [row.ids for row in _scorer(directory)._encoder.encode(pairs)]  # noqa: SLF001 (not part of a result)


def _scorer(directory: Path) -> RewardScorer:
    model = ResolvedModel(directory, "benchmark", None)
    return RewardScorer(model, max_length=CONTEXT, batch_tokens=BATCH_TOKENS)


def _as(kind: type[network.PaddedDecoder]) -> Callable[[Path, Sequence[list[int]]], Callable[..., list[float]]]:
    def make(directory: Path, _rows: Sequence[list[int]]) -> Callable[..., list[float]]:
        scorer = _scorer(directory)
        loaded: Any = scorer._network  # noqa: SLF001 (the engine chooses by device; here both are measured)
        loaded._backbone.set_attn_implementation("sdpa")  # noqa: SLF001
        scorer._network = kind(loaded._backbone, loaded._head)  # noqa: SLF001

        def score(pairs: Sequence[Pair]) -> list[float]:
            with replaced(network, "CPU_BATCH_TOKENS", BATCH_TOKENS):
                return scorer.score(pairs)

        return score

    return make


def _with_vllm(directory: Path, rows: Sequence[list[int]]) -> Callable[..., list[float]]:
    import vllm

    llm = vllm.LLM(
        model=str(directory),
        runner="pooling",
        convert="classify",
        max_model_len=CONTEXT,
        max_num_batched_tokens=BATCH_TOKENS,
        enable_prefix_caching=True,
        seed=0,
        gpu_memory_utilization=0.5 if torch.cuda.is_available() else 0.2,
    )
    prompts: list[Any] = [{"prompt_token_ids": row} for row in rows]
    params = vllm.PoolingParams(use_activation=False)

    def score(pairs: Sequence[Pair]) -> list[float]:
        found = llm.encode(prompts[: len(pairs)], params, pooling_task="classify", use_tqdm=False)
        return [float(one.outputs.data.flatten()[0]) for one in found]

    return score


SIDES = {
    "padded rows": _as(network.PaddedDecoder),
    "packed rows": _as(network.PackedDecoder),
    "vLLM's pooling runner": _with_vllm,
}


def measure(
    score: Callable[..., list[float]], pairs: Sequence[Pair], rows: Sequence[list[int]], expected: list[float]
) -> Figures:
    """Measure one side after a warm-up; `expected` are the first side's scores, and receives them from that side."""
    score(pairs[: len(pairs) // 4])
    scores: list[float] = []
    seconds = seconds_of(lambda: scores.extend(score(pairs)))
    if not expected:
        expected.extend(scores)
    difference = max(abs(own - other) for own, other in zip(scores, expected, strict=True))
    tokens = sum(map(len, rows))
    return rounded({"tokens_per_s": tokens / seconds, "seconds": seconds, "score_difference": difference})


if __name__ == "__main__":
    part_main(act)
    # Engines leave threads that are not needed any more.
    sys.stdout.flush()
    os._exit(0)
