"""torchrun for the training stages: a bounded rendezvous first, and the stage's own exit code at the end.

`python -m wrpo_engine.training.launch STAGE --config FILE` reads PET_* exactly as torchrun does and starts the ranks of
this node. Plain torchrun ends with 1 whatever its worker ended with, so that a bad configuration (78) or a stop on
request (143) would look like a crash and be retried; this ends with the code of the worker that failed first. On
SIGTERM workers get as long as the pod's grace period allows to save a checkpoint, not torchrun's 30 seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from wrpo_engine.config import ExitCode, Runtime, TerminationMessage
from wrpo_engine.errors import Interrupted, WrpoError
from wrpo_engine.process import termination
from wrpo_engine.process.environment import prepare_environment
from wrpo_engine.training.distributed.rendezvous import Node, meet

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
    """Wait for the other nodes, start this node's workers, wait for them, return the exit code."""
    prepare_environment(environ)
    environ.setdefault(_SHUTDOWN_TIMEOUT, str(_SHUTDOWN_TIMEOUT_S))
    runtime = _runtime(arguments)
    try:
        with _stoppable():
            node = Node.of(environ)
            if node is not None:
                meet(node, timeout_s=runtime.rendezvous_timeout_seconds)
    except WrpoError as error:
        return _end(error, environ)
    return _torchrun(arguments, runtime)


def _torchrun(arguments: Sequence[str], runtime: Runtime) -> int:
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    untyped: Any = torchrun
    # All nodes have just been there: torchrun's own rendezvous is a matter of seconds.
    bound = f"--rdzv-conf=timeout={runtime.rendezvous_timeout_seconds}"
    try:
        untyped.run(untyped.parse_args([bound, "-m", "wrpo_engine", *arguments]))
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        return exit_code_of([failure.exitcode for failure in failures])
    except SignalException:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _runtime(arguments: Sequence[str]) -> Runtime:
    """Read the bounds; a broken file or a broken definition of a stage is the workers' to report, in full."""
    if len(arguments) < 3 or "--config" not in arguments[:-1]:
        return Runtime()
    try:
        from wrpo_engine.process.cli import read_config

        path = Path(arguments[list(arguments).index("--config") + 1])
        return read_config(arguments[0], path).runtime
    except (WrpoError, ValueError):
        return Runtime()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end the wait: as a container's first process this one would otherwise not hear it."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted("stopped on request while waiting for the other nodes")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(error: WrpoError, environ: Mapping[str, str]) -> int:
    interrupted = isinstance(error, Interrupted)
    print(f"{'interrupted' if interrupted else 'error'}: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    message = TerminationMessage(
        outcome="Interrupted" if interrupted else "Failed", error=error.info(), exit_code=error.exit_code
    )
    try:
        termination.write(message, environ)
    except OSError as failure:
        print(f"cannot write the termination message: {failure}", file=sys.stderr)
    return error.exit_code


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(launch(sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
