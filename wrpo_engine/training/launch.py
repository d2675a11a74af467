"""torchrun for the training stages, with the stage's own exit code.

`python -m wrpo_engine.training.launch STAGE --config FILE` reads PET_* exactly as torchrun does and starts the ranks of
this node. Plain torchrun ends with 1 whatever its worker ended with, so that a bad configuration (78) or a stop on
request (143) would look like a crash and be retried; this ends with the code of the worker that failed first. On
SIGTERM workers get as long as the pod's grace period allows to save a checkpoint, not torchrun's 30 seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any

from wrpo_engine.config import ExitCode
from wrpo_engine.environment import prepare_environment

_SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
_SHUTDOWN_TIMEOUT_S = 3600
"""Longer than any grace period: the kubelet's SIGKILL is the bound."""


def exit_code_of(codes: Sequence[int]) -> int:
    """Return the node's exit code from its failed workers' codes, first failure first.

    A worker that lost its peers ends with 75; if another one on the node says why, that one counts. A worker killed by
    a signal has a negative code and becomes 128 + signal, as shells write it.
    """
    causes = [code for code in codes if code != ExitCode.TEMPORARY] or list(codes)
    first = causes[0]
    return first if first >= 0 else 128 - first


def launch(arguments: Sequence[str], environ: MutableMapping[str, str]) -> int:
    """Start this node's workers, wait for them, return the exit code."""
    prepare_environment(environ)
    environ.setdefault(_SHUTDOWN_TIMEOUT, str(_SHUTDOWN_TIMEOUT_S))
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    untyped: Any = torchrun
    try:
        untyped.run(untyped.parse_args(["-m", "wrpo_engine", *arguments]))
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        return exit_code_of([failure.exitcode for failure in failures])
    except SignalException:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def main() -> None:
    sys.exit(launch(sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
