"""A sampling or answering stage in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from forked_stages import fork_context


def start_sampling(config: Path, environ: Mapping[str, str], stage: str = "sample") -> BaseProcess:
    """Start `wrpo-engine STAGE --config CONFIG`; its clock stands still, so that equal artifacts are equal bytes."""
    process = fork_context().Process(target=_run, args=(stage, config, dict(environ)))
    process.start()
    return process


def _run(stage: str, config: Path, environ: dict[str, str]) -> None:
    os.environ.update(environ)
    import torch
    from engine_support import NOON

    from wrpo_engine.process.environment import prepare_environment
    from wrpo_engine.running import install_signal_handlers, run
    from wrpo_engine.stage import StopRequest

    stop = StopRequest()
    install_signal_handlers(stop)
    torch.set_num_threads(1)
    prepare_environment(os.environ)
    sys.exit(run(stage, config, os.environ, stop=stop, clock=lambda: NOON))
