"""Waiting for conditions with kubectl, on servers that write them late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

EVERY_S = 0.2


def wait_for_condition(
    kubectl: Callable[..., str], condition: str, *what: str, timeout_s: float, every_s: float = EVERY_S
) -> None:
    """Wait until `what` (`crd/NAME`, or further flags of kubectl) has a condition, however late it comes.

    `kubectl wait` alone fails at once where there is no object yet, or a status without conditions, and a real server
    writes both some time after the request that asks for them. `kubectl` gets the arguments and raises AssertionError
    where they fail; the last such error is raised when `timeout_s` is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = math.ceil(max(deadline - time.monotonic(), 1))
        try:
            kubectl("wait", f"--for=condition={condition}", *what, f"--timeout={left}s")
        except AssertionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(every_s)
        else:
            return
