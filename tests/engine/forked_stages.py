"""The fork server of stages in processes of their own: real, and there in half a second.

`multiprocessing` has one fork server for each process and reads the list of modules only when that starts. Tests that
each name their own modules would take the server of whichever ran first, and import torch anew with every stage.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

from wrpo_engine.process.warm import MODULES

_PRELOAD = [
    "polars",
    *MODULES,
    "wrpo_engine.answering.stage",
    "wrpo_engine.judging.stage",
    "wrpo_engine.running",
    "wrpo_engine.sampling.stage",
    "wrpo_engine.scoring.stage",
]


def fork_context() -> ForkServerContext:
    """Return the context whose processes are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context
