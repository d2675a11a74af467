"""Peak memory between two moments: the resident set's high-water mark on a CPU, PyTorch's accounting on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} has no {field}")
    return int(found[1]) * 1024


def resident_bytes() -> int:
    """Return the resident bytes of this process, after the C library has returned freed memory."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status_bytes("VmRSS")


class PeakMemory:
    """Peak memory between `start()` and `stop()`, in bytes above the memory at the start."""

    def __init__(self) -> None:
        self._held = 0

    @property
    def source(self) -> str:
        return "torch.cuda.max_memory_allocated" if _on_gpu() else "VmHWM of /proc/self/status"

    def start(self) -> None:
        if _on_gpu():
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._held = torch.cuda.memory_allocated()
            return
        self._held = resident_bytes()
        _CLEAR_REFS.write_text(_RESET_PEAK)

    def stop(self) -> int:
        if _on_gpu():
            import torch

            torch.cuda.synchronize()
            return max(0, int(torch.cuda.max_memory_allocated()) - self._held)
        return max(0, _status_bytes("VmHWM") - self._held)


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
