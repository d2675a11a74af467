"""Synthetic prompts, responses and scores as committed artifacts of real sizes, created once and kept.

Every response is a text of a pool with its number appended. So no two are equal, the sizes are those of a real
experiment, and the data take only minutes to create.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.common.process import worker_main
from wrpo_engine.artifacts import VolumeStore, records
from wrpo_engine.config import ArtifactRef

SAMPLES_PER_PROMPT = 5
PROMPTS_PER_PART = 32
SCORES_PER_PART = 4096
POOL = 20_000
MEAN_WORDS = 270
WORDS = 12_000
COMPLETE = "complete.json"
HASH = "0" * 16
_SEED = 7


@dataclass(frozen=True)
class Size:
    """How many prompts and models; the target is one model more."""

    prompts: int
    sources: int

    @property
    def responses(self) -> int:
        return self.prompts * (self.sources + 1) * SAMPLES_PER_PROMPT

    @property
    def models(self) -> list[str]:
        return [*(f"source-{number:02d}" for number in range(self.sources)), "target"]


def size_of(rows: int, sources: int) -> Size:
    """Return the size whose sources have about `rows` responses."""
    return Size(prompts=max(8, round(rows / sources / SAMPLES_PER_PROMPT)), sources=sources)


def make(root: Path, size: Size) -> dict[str, Any]:
    """Write all artifacts below `root` and return their sizes."""
    generator = np.random.default_rng(_SEED)
    pool = _pool(generator, min(POOL, size.responses))
    ids = [hashlib.sha256(f"prompt {number}".encode()).hexdigest() for number in range(size.prompts)]
    lengths = generator.integers(40, 1200, size.prompts)
    prompts = pl.DataFrame(
        {
            "prompt_id": ids,
            "prompt": [f"{number} {pool[number % len(pool)][:length]}" for number, length in enumerate(lengths)],
        },
        schema=records.PROMPTS,
    )
    _commit(root, "prepare", {"preference.parquet": prompts}.items())
    text_bytes = 0
    for number, model in enumerate(size.models):
        samples = _sample_parts(model, ids, pool, np.random.default_rng([_SEED, number]))
        text_bytes += _commit(root, f"sample/{model}", samples)
        _commit(root, f"score/{model}", _score_parts(model, ids, np.random.default_rng([_SEED, number, 1])))
    summary = {"responses": size.responses, "prompts": size.prompts, "text_bytes": text_bytes}
    (root / COMPLETE).write_text(json.dumps(summary))
    return summary


def _pool(generator: np.random.Generator, size: int) -> list[str]:
    letters = np.array(list("etaoinshrdlucmfwyp"))
    words = ["".join(generator.choice(letters, letter_count)) for letter_count in generator.integers(2, 10, WORDS)]
    # Few words are common and most are rare, as in real text, so that it compresses like real text.
    ranks = 1 / np.arange(1, WORDS + 1)
    counts = np.clip(generator.lognormal(np.log(MEAN_WORDS), 0.5, size), 8, 1500).astype(int)
    drawn = generator.choice(WORDS, counts.sum(), p=ranks / ranks.sum())
    ends = np.cumsum(counts)
    return [" ".join(words[word] for word in drawn[end - count : end]) for count, end in zip(counts, ends, strict=True)]


def _sample_parts(
    model: str, ids: list[str], pool: list[str], generator: np.random.Generator
) -> Iterator[tuple[str, pl.DataFrame]]:
    texts = pl.Series("text", pool)
    for part, start in enumerate(range(0, len(ids), PROMPTS_PER_PART)):
        own = ids[start : start + PROMPTS_PER_PART]
        height = len(own) * SAMPLES_PER_PROMPT
        numbers = pl.Series(np.arange(height) + start * SAMPLES_PER_PROMPT)
        frame = pl.DataFrame(
            {
                "prompt_id": np.repeat(own, SAMPLES_PER_PROMPT),
                "source": [model] * height,
                "sample_index": list(range(SAMPLES_PER_PROMPT)) * len(own),
                "text": texts.gather(generator.integers(0, len(pool), height))
                + " "
                + model
                + " "
                + numbers.cast(pl.String),
                "num_tokens": generator.integers(20, 800, height),
                "finish_reason": np.where(generator.random(height) < 0.02, "length", "stop"),
                "seed": numbers,
            },
            schema=records.SAMPLES,
        )
        yield f"parts/part-{part:05d}.parquet", frame


def _score_parts(model: str, ids: list[str], generator: np.random.Generator) -> Iterator[tuple[str, pl.DataFrame]]:
    height = len(ids) * SAMPLES_PER_PROMPT
    # Rounded, so that ties happen.
    scores = np.round(generator.normal(0.13, 0.03, height), 4)
    frame = pl.DataFrame(
        {
            "prompt_id": np.repeat(ids, SAMPLES_PER_PROMPT),
            "source": [model] * height,
            "sample_index": np.tile(np.arange(SAMPLES_PER_PROMPT), len(ids)),
            "score": scores,
            "truncated": np.zeros(height, dtype=bool),
        },
        schema=records.SCORES,
    )
    for part, rows in enumerate(frame.iter_slices(SCORES_PER_PART)):
        yield f"parts/part-{part:05d}.parquet", rows


def _commit(root: Path, stage: str, tables: Any) -> int:
    """Commit the tables as files of one artifact; return the bytes of their texts."""
    ref = ArtifactRef(stage=stage, hash=HASH)
    writer = VolumeStore(root, lambda: datetime.now(UTC)).writer(ref, config={}, inputs={})
    rows: dict[str, int] = {}
    text_bytes = 0
    for name, frame in tables:
        path = writer.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path)
        rows[name] = frame.height
        if "text" in frame.columns:
            text_bytes += int(frame["text"].str.len_bytes().sum())
    writer.commit(files=rows, rows=rows)
    return text_bytes


def roles(size: Size) -> dict[str, dict[str, str]]:
    """Return the inputs of the stage."""
    found = {"prompts": {"stage": "prepare", "hash": HASH}}
    for model in size.models:
        found[f"samples/{model}"] = {"stage": f"sample/{model}", "hash": HASH}
        found[f"scores/{model}"] = {"stage": f"score/{model}", "hash": HASH}
    return found


def _make(specification: Mapping[str, Any]) -> dict[str, Any]:
    size = Size(prompts=specification["prompts"], sources=specification["sources"])
    return make(Path(specification["root"]), size)


if __name__ == "__main__":
    worker_main(_make)
