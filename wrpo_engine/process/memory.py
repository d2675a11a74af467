"""Peak memory of the process."""

from __future__ import annotations

import contextlib
import re
import resource
from pathlib import Path

_KIB = 1024


def peak_host_bytes() -> int:
    """Return the peak host memory of this process since its start, in bytes.

    Linux carries ru_maxrss through fork and exec, so it may be the parent's. The process's own peak is VmHWM.
    """
    with contextlib.suppress(OSError):
        own = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if own is not None:
            return int(own[1]) * _KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
