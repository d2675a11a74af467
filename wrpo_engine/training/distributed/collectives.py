"""Collectives other than those of gradients: sums, flags, errors. A lost peer becomes one clear error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from wrpo_engine.errors import TemporaryError, WrpoError
from wrpo_engine.training.distributed.sequential import SequentialWork, own_connection

DEFAULT_TIMEOUT_S = 1800.0
_PEER_SYMPTOMS = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "timed out waiting",
    "tcpstore",
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failure:
    """A picklable error for the other ranks; exceptions whose constructor has required arguments do not unpickle."""

    kind: type[WrpoError]
    message: str
    attributes: dict[str, Any]

    @classmethod
    def of(cls, error: Exception, rank: int = 0) -> _Failure:
        if isinstance(error, WrpoError):
            return cls(type(error), str(error), dict(error.__dict__))
        message = f"rank {rank} failed: {type(error).__name__}: {error}"
        return cls(TemporaryError, message, dict(TemporaryError(message).__dict__))

    def error(self) -> WrpoError:
        error = self.kind.__new__(self.kind)
        Exception.__init__(error, self.message)
        error.__dict__.update(self.attributes)
        return error


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Convert the errors of a lost or silent peer to TemporaryError, so that all ranks are recreated."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, dist.DistError) or any(symptom in text for symptom in _PEER_SYMPTOMS):
            first_line = str(error).splitlines()[0]
            raise TemporaryError(
                f"another process of this training run is gone or does not reply: {first_line}",
                code="PeerLost",
                hint="See the log of that process for the cause. The next attempt resumes from the last checkpoint.",
            ) from error
        raise


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks of the run, seen from one of them. With one rank nothing is sent."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Index of this rank on its node."""
    local_world_size: int = 1
    """Ranks on this node."""
    sequential: SequentialWork | None = field(default=None, repr=False, compare=False)
    """None with one rank."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes the artifact's files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over ranks of a CPU tensor, computed in place.

        Metrics are float64, so that the order of the summation does not show.
        """
        if self.world_size > 1:
            with peer_errors():
                dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with peer_errors():
            dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; cheaper than gathering an object."""
        return bool(self.sum(torch.tensor(float(flag), dtype=torch.float64)) > 0)

    def broadcast(self, value: T | None) -> T:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value  # type: ignore[return-value]
        box: list[Any] = [value]
        with peer_errors():
            dist.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        self.gather(None)

    def on_main(self, function: Callable[[], T]) -> T:
        """Run a function on rank 0 and return its result on every rank; its error is raised on every rank too."""
        outcome, raised = self._outcome([0], function)
        # The process of rank 0 may host the store: it waits until all ranks have seen that it has finished.
        self.barrier()
        outcome = self.broadcast(outcome)
        if raised is not None:
            raise raised
        if isinstance(outcome, _Failure):
            raise outcome.error()
        result: T = outcome
        return result

    def on_each_node(self, function: Callable[[], T]) -> T:
        """Run a function on the first rank of every node and return its result on all ranks of that node.

        For files that the node's ranks share. An error on one node is raised on every rank.
        """
        work = function if self.local_rank == 0 else lambda: None
        outcome, raised = self._outcome(range(self.world_size), work)
        outcomes = self.gather(outcome)
        if raised is not None:
            raise raised
        for other in outcomes:
            if isinstance(other, _Failure):
                raise other.error()
        result: T = outcomes[self.rank - self.local_rank]
        return result

    def _outcome(self, workers: Sequence[int], function: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """Call a function if this rank is one of `workers`, and wait for the other workers while they send heartbeats.

        Return the value to send to the others, and this rank's own error.
        """
        raised: Exception | None = None

        def work() -> Any:
            nonlocal raised
            try:
                return function()
            except Exception as error:  # noqa: BLE001 (the others wait for this rank's result)
                raised = error
                return _Failure.of(error, self.rank)

        if self.sequential is not None:
            with peer_errors():
                return self.sequential.run(workers, work), raised
        return (work() if self.rank in workers else None), raised


def computing_device() -> torch.device:
    """Return the device on which this rank computes: its GPU if it has one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@contextlib.contextmanager
def open_group(environ: Mapping[str, str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Iterator[Group]:
    """Join the process group that torchrun describes in the environment; without torchrun the group has one rank.

    A rank that waits for a peer longer than `timeout_s` seconds raises TemporaryError.
    """
    rank, world_size = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(environ.get("LOCAL_RANK", "0")))
    with peer_errors():
        if world_size > 1:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=cast("Any", dist).HashStore(), rank=0, world_size=1, timeout=timeout)
    local_rank, local_world_size = int(environ.get("LOCAL_RANK", "0")), int(environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        sequential = SequentialWork(own_connection(timeout_s), rank, timeout_s) if world_size > 1 else None
        yield Group(rank, world_size, local_rank, local_world_size, sequential)
    finally:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                _destroy()


def _destroy() -> None:
    """Destroy the process group, through DeepSpeed if it is loaded: it keeps groups that a later run would reuse."""
    deepspeed_comm = sys.modules.get("deepspeed.comm")
    if deepspeed_comm is not None and deepspeed_comm.is_initialized():
        deepspeed_comm.destroy_process_group()
    else:
        dist.destroy_process_group()
