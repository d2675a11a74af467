"""What the end-to-end scripts print, and how they end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def raise_on_signals() -> None:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM, so that a run removes what it has created."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
