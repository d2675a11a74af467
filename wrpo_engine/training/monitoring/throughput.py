"""Throughput and memory of a step: the machine-dependent fields of a row of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wrpo_engine.config import Runtime, SftParams, TrainParams
from wrpo_engine.process.memory import peak_host_bytes
from wrpo_engine.training.batch.flops import (
    FORWARD_AND_BACKWARD,
    FORWARD_AND_INPUT_GRADIENTS,
    ModelCost,
    needed_training_step,
)
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.monitoring.metrics import StepTotals
from wrpo_engine.training.monitoring.mfu import peak_flops, utilisation


def peak_memory_bytes() -> int:
    """Return the peak memory of this process so far in bytes: of its GPU if it has one, otherwise of the host."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_host_bytes()


@dataclass(frozen=True, slots=True)
class Speedometer:
    """Computes rates and MFU from a step's time."""

    devices: int = 1
    cost: ModelCost | None = None
    peak_flops: float | None = None
    """Operations per second of one device; None if unknown, then no MFU is reported."""
    passes: int = FORWARD_AND_BACKWARD
    """Operations of a training step in units of one forward pass."""

    def row(
        self, elapsed_s: float, totals: StepTotals, phases: Mapping[str, float], rows: Callable[[], Iterable[TokenRow]]
    ) -> dict[str, float]:
        """Return fields of CLOCK_FIELDS; `rows` returns the step's rows of all ranks."""
        row = {
            "step_seconds": elapsed_s,
            "tokens_per_second": totals.num_tokens / elapsed_s,
            "triples_per_second": totals.num_rows / elapsed_s,
            **phases,
            "peak_memory_bytes": totals.peak_memory,
        }
        if totals.attention_fallbacks:
            row["attention_fallback"] = totals.attention_fallbacks
        if self.peak_flops is not None and self.cost is not None:
            operations = needed_training_step(self.cost, rows(), passes=self.passes)
            row["mfu"] = utilisation(operations, elapsed_s, devices=self.devices, peak=self.peak_flops)
        return row


def make_speedometer(config: Any, params: SftParams | TrainParams, runtime: Runtime, *, world_size: int) -> Speedometer:
    """Look up the device's peak; if it is known, count the model's weights on the meta device."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    peak = peak_flops(runtime.peak_flops, name, params.precision)
    if peak is None:
        return Speedometer()
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        cost = ModelCost.of(AutoModelForCausalLM.from_config(config, trust_remote_code=params.model.trust_remote_code))
    passes = FORWARD_AND_BACKWARD if params.lora is None else FORWARD_AND_INPUT_GRADIENTS
    return Speedometer(world_size, cost, peak, passes)
