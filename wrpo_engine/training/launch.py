"""torchrun launcher of the training stages: rendezvous with a timeout, and the stage's own exit code.

`python -m wrpo_engine.training.launch STAGE --config FILE` reads PET_* exactly as torchrun does and starts the ranks of
this node. Plain torchrun exits with 1 for every failure of a worker. A bad configuration (78) or a stop on request
(143) would look like a crash and be retried. This launcher exits with the code of the worker that failed first. On
SIGTERM workers have the pod's whole grace period to save a checkpoint, instead of torchrun's 30 seconds.
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

from wrpo_engine.config import ErrorInfo, ExitCode, Runtime, TerminationMessage
from wrpo_engine.errors import Interrupted, WrpoError
from wrpo_engine.process import spares, termination
from wrpo_engine.process.environment import prepare_environment
from wrpo_engine.process.machine import fabric, fabric_lines, threads_per_rank, usable_cores
from wrpo_engine.training.distributed.rendezvous import Node, meet

log = logging.getLogger("wrpo_engine")

_SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
_SHUTDOWN_TIMEOUT_S = 3600
"""Seconds, longer than any grace period: the kubelet's SIGKILL is the limit."""


def exit_code_of(codes: Sequence[int]) -> int:
    """Return the node's exit code from its failed workers' codes, first failure first.

    A worker that lost its peers exits with 75; the code of another worker on the node, the cause, takes precedence. A
    worker killed by a signal has a negative code, which becomes 128 + signal as in shells.
    """
    causes = [code for code in codes if code != ExitCode.TEMPORARY] or list(codes)
    first = causes[0]
    return first if first >= 0 else 128 - first


def launch(arguments: Sequence[str], environ: MutableMapping[str, str]) -> int:
    """Wait for the other nodes, run this node's workers, and return the exit code; `environ` is changed.

    A failed rendezvous writes the termination message and returns its error's exit code.
    """
    prepare_environment(environ, is_training=True)
    environ.setdefault(_SHUTDOWN_TIMEOUT, str(_SHUTDOWN_TIMEOUT_S))
    runtime = _runtime(arguments)
    _set_threads(runtime, environ)
    try:
        with _stoppable():
            node = Node.of(environ)
            if node is not None:
                meet(node, timeout_s=runtime.rendezvous_timeout_seconds)
                if node.rank == 0:
                    _log_fabric()
    except WrpoError as error:
        return _end(error, environ)
    ranks = environ.get("PET_NPROC_PER_NODE", "1")
    spares.keep(int(ranks) if ranks.isdigit() else 0, environ)
    return _torchrun(arguments, runtime)


def _set_threads(runtime: Runtime, environ: MutableMapping[str, str]) -> None:
    """Give the ranks the cores if the optimizer computes on them; the user's OMP_NUM_THREADS takes precedence."""
    threads = threads_per_rank(usable_cores(), environ.get("PET_NPROC_PER_NODE", ""))
    if runtime.offload != "none" and threads is not None:
        environ.setdefault("OMP_NUM_THREADS", str(threads))


def _log_fabric() -> None:
    line, warning = fabric_lines(*fabric())
    log.info("%s", line)
    if warning is not None:
        log.warning("%s", warning)


def _torchrun(arguments: Sequence[str], runtime: Runtime) -> int:
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    untyped: Any = torchrun
    # All nodes have just connected, so torchrun's own rendezvous takes seconds.
    bound = f"--rdzv-conf=timeout={runtime.rendezvous_timeout_seconds}"
    try:
        with _ranks_by_spares():
            untyped.run(untyped.parse_args([bound, "-m", "wrpo_engine", *arguments]))
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        return exit_code_of([failure.exitcode for failure in failures])
    except SignalException:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


@contextmanager
def _ranks_by_spares() -> Iterator[None]:
    """Let torchrun start a rank by a spare process while there is one."""
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    class Handler(SubprocessHandler):
        def _popen(self, args: tuple[str, ...], env: dict[str, str]) -> Any:
            outputs = [1 if self._stdout is None else self._stdout.fileno()]
            outputs.append(2 if self._stderr is None else self._stderr.fileno())
            return spares.by_spare(args, env, (outputs[0], outputs[1])) or super()._popen(args, env)

    untyped: Any = api
    before = untyped.get_subprocess_handler
    untyped.get_subprocess_handler = Handler
    try:
        yield
    finally:
        untyped.get_subprocess_handler = before


def _runtime(arguments: Sequence[str]) -> Runtime:
    """Return the stage's runtime settings; the defaults for a broken file or stage, which the workers report."""
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
    """End the wait on SIGTERM, which the first process of a container ignores without a handler."""

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
        outcome="Interrupted" if interrupted else "Failed", error=ErrorInfo.of(error), exit_code=error.exit_code
    )
    try:
        termination.write(message, environ)
    except OSError as failure:
        print(f"cannot write the termination message: {failure}", file=sys.stderr)
    return error.exit_code


def main() -> None:
    """Run the launcher with the arguments of the command line and exit with its code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(launch(sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
