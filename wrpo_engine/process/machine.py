"""What the pod's machine offers: CPU cores, the NVIDIA driver, and what fast networks between nodes need.

Facts are read by small functions and judged by pure ones. Nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrpo_engine.errors import ConfigError

_DRIVER_OF = {11: "450", 12: "525", 13: "580"}
"""Major version of CUDA -> the first driver that runs every program built for it."""
_MIB = 2**20
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
_INFINIBAND = Path("/dev/infiniband")


def usable_cores(quota_file: Path = _CPU_QUOTA_FILE) -> int:
    """Return the number of CPU cores that this process may use, by its affinity and its container's CPU limit."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        # No file (cgroup v1), or "max" for no limit.
        return cores


def threads_per_rank(cores: int, ranks: str) -> int | None:
    """Return the threads for the CPU work of each of a node's ranks; None if their number is unknown or 1.

    torchrun gives each of several ranks one thread, with which an optimizer in CPU memory would run on one core.
    """
    if not ranks.isdigit() or int(ranks) < 2:
        return None
    return max(1, cores // int(ranks))


@dataclass(frozen=True, kw_only=True)
class CudaFacts:
    """The CUDA versions of torch and of the driver."""

    runtime: str | None
    """CUDA version that torch was built with, e.g. 13.0; None: a build for CPUs or for AMD."""
    supported: int | None
    """Newest CUDA version that the driver runs, as 1000 * major + 10 * minor; None: no driver in this container."""
    driver: str | None
    """Version of the driver, if the kernel says it."""

    @classmethod
    def read(cls) -> CudaFacts:
        """Return the facts of this container."""
        return cls(runtime=torch_cuda(), supported=supported_cuda(), driver=driver_version())


def require_driver(facts: CudaFacts) -> str | None:
    """Return a line for the log, or None where there is no CUDA; ConfigError if the driver is too old.

    torch only warns and computes on the CPU with a driver that is too old, and vLLM ends with an error of CUDA.
    """
    if facts.runtime is None or facts.supported is None:
        return None
    needed = int(facts.runtime.partition(".")[0])
    supported = f"{facts.supported // 1000}.{facts.supported % 1000 // 10}"
    driver = facts.driver or "of unknown version"
    if facts.supported // 1000 < needed:
        first = _DRIVER_OF.get(needed)
        raise ConfigError(
            "the node's NVIDIA driver",
            driver,
            f"it runs programs up to CUDA {supported}, and this image's torch is built for CUDA {facts.runtime}",
            f"Install {f'driver {first} or newer' if first else 'a newer driver'} on the nodes with GPUs, or set "
            f"spec.images to images built for CUDA {facts.supported // 1000}.",
            code="DriverTooOld",
        )
    return f"CUDA {facts.runtime} (torch) on NVIDIA driver {driver}, which runs programs up to CUDA {supported}"


def torch_cuda() -> str | None:
    """Return the CUDA version of the installed torch from its version file, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*= '([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def supported_cuda(load: Callable[[str], Any] = ctypes.CDLL) -> int | None:
    """Return what cuDriverGetVersion says; None without the driver's library."""
    version = ctypes.c_int()
    try:
        status = load("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value if status == 0 and version.value > 0 else None


def driver_version(file: Path = _DRIVER_FILE) -> str | None:
    """Return the version of the kernel's driver, e.g. 580.65.06."""
    try:
        found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", file.read_text())
    except OSError:
        return None
    return found[1] if found else None


def fabric_lines(locked_bytes: int, infiniband: Sequence[str]) -> tuple[str, str | None]:
    """Return a line for the log on what NCCL finds between nodes, and a warning if it would not use InfiniBand.

    `locked_bytes` is RLIMIT_MEMLOCK, -1 for no limit; `infiniband` are the names in /dev/infiniband.
    """
    limit = "unlimited" if locked_bytes < 0 else f"{locked_bytes / _MIB:.0f} MiB"
    devices = ", ".join(infiniband) or "none"
    warning = None
    if infiniband and locked_bytes >= 0:
        warning = (
            f"this pod may lock only {limit} of memory: NCCL cannot register its buffers with InfiniBand and uses TCP "
            "instead, which is many times slower. Set LimitMEMLOCK=infinity for the container runtime of the nodes "
            "(systemd unit of containerd or CRI-O) and restart it."
        )
    return f"between nodes: /dev/infiniband has {devices}; limit of locked memory: {limit}", warning


def fabric() -> tuple[int, list[str]]:
    """Return RLIMIT_MEMLOCK in bytes (-1: no limit) and the names in /dev/infiniband."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    names = sorted(path.name for path in _INFINIBAND.iterdir()) if _INFINIBAND.is_dir() else []
    return (-1 if limit == resource.RLIM_INFINITY else limit), names
