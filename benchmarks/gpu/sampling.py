"""Part: the sample stage next to a bare LLM.generate of the same requests, with vLLM's engine in its own process."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.summary import Summary
from benchmarks.gpu.models import save_model
from benchmarks.gpu.rows import Figures, Row
from benchmarks.gpu.work import Work, part_main, rounded
from benchmarks.sampling.worker import ANSWER, BARE, STAGE, measure
from benchmarks.sampling.workload import CONTEXT, Load

NAMES = {BARE: "bare LLM.generate", STAGE: "sample stage", ANSWER: "answer stage"}


def act(work: Work) -> None:
    load = work.pick(Load(prompts=384, samples=5, max_tokens=256), Load(prompts=4, samples=2, max_tokens=8))
    dtype = "bfloat16" if work.device.type == "cuda" else "float32"
    with tempfile.TemporaryDirectory(prefix="wrpo-bench-model-") as directory:
        save_model(Path(directory), work.size, dtype, context=CONTEXT)
        specification = {
            "model": directory,
            "backend": "vLLM",
            "load": asdict(load),
            "rounds": work.pick(2, 1),
            "is_exact": work.device.type == "cpu",
        }
        try:
            rounds = measure(specification)["rounds"]
        except Exception:  # noqa: BLE001 (any error is this row's result)
            work.rows.add(Row.failed("vLLM", traceback.format_exc()))
            return
    for side, name in NAMES.items():
        work.rows.add(Row(name, figures_of(side, rounds)))


def figures_of(side: str, rounds: Sequence[Mapping[str, Any]]) -> Figures:
    """Return the medians of one side's rounds, by the wall clock."""
    own = [one for one in rounds if one["side"] == side]
    return rounded(
        {
            "tokens_per_s": Summary.of([one["tokens"] / one["seconds"] for one in own]).median,
            "seconds": Summary.of([one["seconds"] for one in own]).median,
        }
    )


if __name__ == "__main__":
    part_main(act)
    # Engines leave threads that are not needed any more.
    sys.stdout.flush()
    os._exit(0)
