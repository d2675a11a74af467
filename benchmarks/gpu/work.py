"""Common parts of the parts' processes: the device, the clock, the workload, and the model of an 8B's layers."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.memory import PeakMemory
from benchmarks.common.process import worker_main
from benchmarks.gpu.rows import LOG, RowWriter
from benchmarks.training.workload import SEED, Case, Lengths, ModelSize, llama_config, make_rows
from wrpo_engine.training.batch.collate import Batch, collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow

LAYERS_OF_8B = ModelSize(4, 4096, 14336, 32, 8, 128256)
"""Four of an 8B Llama's 32 layers, and its head."""
TOY = ModelSize(2, 128, 192, 2, 1, 512)
MICRO_BATCH_TOKENS = {False: 8192, True: 256}
"""The engine's default on a GPU, and the toy size."""
MAX_ROWS = 8
"""Of a micro-batch; usually four fill it."""
_MIB = 2**20


@dataclass(frozen=True)
class Work:
    """What a part's process is asked to do."""

    rows: RowWriter
    quick: bool
    """Toy sizes."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def size(self) -> ModelSize:
        return TOY if self.quick else LAYERS_OF_8B

    def pick(self, full: Any, toy: Any) -> Any:
        """Return the value for the level."""
        return toy if self.quick else full

    def case(self, size: ModelSize | None = None) -> Case:
        """Return rows of UltraFeedback's lengths."""
        scale = self.pick(1, 16)
        prompt = Lengths(256 // scale, 0.8, 16 // min(scale, 4), 2048 // scale)
        response = Lengths(384 // scale, 0.5, 16 // min(scale, 4), 1024 // scale)
        return Case("triples", size or self.size, prompt, response, 4, 4)

    def micro_batches(self, count: int, size: ModelSize | None = None) -> list[list[TokenRow]]:
        """Return `count` lists of rows of about the micro-batch's tokens in the shared-prefix layout, all different."""
        budget = MICRO_BATCH_TOKENS[self.quick]
        rows = iter(make_rows(self.case(size), count * MAX_ROWS))
        found: list[list[TokenRow]] = []
        while len(found) < count:
            batch: list[TokenRow] = []
            tokens = 0
            while tokens < budget * 3 // 4 and len(batch) < MAX_ROWS:
                row = next(rows)
                tokens += len(row.prompt) + sum(map(len, row.responses))
                batch.append(TokenRow(f"{len(found)}/{len(batch)}", row.prompt, row.responses))
            found.append(batch)
        return found


def part_main(act: Callable[[Work], None]) -> None:
    """Run a part from the command line that `run_worker` gives it."""

    def work(specification: dict[str, Any]) -> dict[str, Any]:
        rows = Path(specification["rows"])
        with rows.with_name(LOG).open("ab") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
        act(Work(RowWriter(rows), quick=specification["quick"]))
        return {}

    worker_main(work)


def model_of(work: Work, size: ModelSize | None = None) -> Any:
    """Return a Llama of random weights on the device in the dtype of training, for training."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    with work.device:
        # Rotary frequencies stay in fp32, which a cast of the whole model would round.
        causal_lm: Any = AutoModelForCausalLM.from_config(llama_config(size or work.size), dtype=work.dtype)
    return causal_lm.train()


def batches_of(work: Work, rows: Sequence[Sequence[TokenRow]], layout: Layout) -> list[Batch]:
    return [collate(micro_batch, layout).to(work.device) for micro_batch in rows]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(act: Callable[[], Any]) -> float:
    """Return the wall time of an action, with all that it started on the device."""
    synchronize()
    started = time.perf_counter()
    act()
    synchronize()
    return time.perf_counter() - started


def median_seconds(acts: Sequence[Callable[[], Any]], *, warm_up: int, rounds: int) -> float:
    """Return the mean over actions of each one's median over rounds, after `warm_up` rounds."""
    for _ in range(warm_up):
        for act in acts:
            act()
    return statistics.mean(statistics.median(seconds_of(act) for _ in range(rounds)) for act in acts)


def peak_mib(act: Callable[[], Any]) -> float:
    """Return the peak memory of an action above what exists before it, in MiB."""
    memory = PeakMemory()
    memory.start()
    act()
    return memory.stop() / _MIB


def loss_of(logps: Tensor) -> Tensor:
    """Return a loss with a different weight on every sequence, of both signs, in nats per sequence."""
    weights = torch.linspace(-1.0, 2.0, len(logps), device=logps.device, dtype=logps.dtype)
    return (logps * weights).mean()


def rounded(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return figures of six significant digits, so that the JSON is readable."""
    return {name: None if value is None else float(f"{value:.6g}") for name, value in figures.items()}
