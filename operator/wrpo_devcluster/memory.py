"""Rare garbage collection for a server process whose stored objects are trees without cycles."""

from __future__ import annotations

import gc

_YOUNG = 50_000
"""Container objects created before a collection of the youngest generation; Python's default is 700."""


def collect_rarely() -> None:
    """Make collections rare and exempt existing objects. Call it once, when everything is loaded.

    Reference counting frees objects as usual. Only cycles wait longer, and the cluster makes few. Otherwise every
    full collection walks through all stored objects: a tenth of the time, and a pause that grows with them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 10)
