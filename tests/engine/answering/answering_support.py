"""Benchmarks, and a sampler that answers with what it was asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
from engine_support import make_tokenizer

from wrpo_engine.artifacts import records
from wrpo_engine.sampling.sampler import FinishReason, Sample, Sampled, SampleRequest, waiting_of

Item = dict[str, Any]


def item(item_id: str, *turns: str, **changes: Any) -> Item:
    return {"item_id": item_id, "category": "", "turns": list(turns), "messages": [], "temperature": None, **changes}


def bundle_of(items: Sequence[Item]) -> dict[str, pl.DataFrame]:
    rows = [{**one, "index": index} for index, one in enumerate(items)]
    return {"items.parquet": pl.DataFrame(rows, schema=records.BENCH_ITEMS)}


def answers_of(texts: dict[str, Sequence[str]]) -> dict[str, pl.DataFrame]:
    """Return the parts of another system's answers."""
    rows = [
        (item_id, turn, 0, text, 1, "stop" if text else "prompt_too_long", 0, 1, 0)
        for item_id, turns in texts.items()
        for turn, text in enumerate(turns)
    ]
    return {"parts/part-00000.parquet": pl.DataFrame(rows, schema=records.ANSWERS, orient="row")}


class RecordingSampler:
    """Answers each sample by its seed; keeps what it was asked."""

    def __init__(self, *, fail_after: int | None = None, texts: Sequence[str] | None = None) -> None:
        self.requests: list[SampleRequest] = []
        self._fail_after, self._texts = fail_after, texts

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        queue = waiting_of(requests)
        while queue:
            if self._fail_after is not None and len(self.requests) >= self._fail_after:
                raise RuntimeError("killed")
            request = queue.popleft()
            self.requests.append(request)
            yield Sampled(
                key=request.key,
                samples=tuple(
                    Sample(
                        text=f"answer {(request.seed + index) % 97}" if self._texts is None else self._texts[index],
                        num_tokens=index + 1,
                        finish_reason=FinishReason.STOP,
                        seed=request.seed + index,
                    )
                    for index in range(request.num_samples)
                ),
            )

    def close(self) -> None:
        pass

    @property
    def prompts(self) -> dict[str, str]:
        """Key -> what the model reads."""
        tokenizer = make_tokenizer()
        return {request.key: tokenizer.decode(request.prompt_token_ids) for request in self.requests}
