"""How often Python looks for garbage in a process that only serves: the stored objects are trees, without cycles."""

from __future__ import annotations

import gc

_YOUNG = 50_000
"""Containers that are made before the young ones are looked at; by default 700."""


def collect_rarely() -> None:
    """Make collections rare, and spare them what there is now: call it once, when everything is loaded.

    Objects go when nobody refers to them, as ever. Only cycles wait longer, and the cluster makes few. Otherwise every
    full collection walks through all stored objects: a tenth of the time, and a pause that grows with them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 10)
