"""Backend protocol of the training loop: weights, gradients and optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wrpo_engine.training.batch.collate import Batch


class TensorKind(StrEnum):
    """The tensors of every trainable parameter."""

    WEIGHT = "weight"
    """The fp32 master weight."""
    EXP_AVG = "exp_avg"
    EXP_AVG_SQ = "exp_avg_sq"


MOMENTS = (TensorKind.EXP_AVG, TensorKind.EXP_AVG_SQ)


class Item(NamedTuple):
    """A tensor of a parameter."""

    name: str
    kind: TensorKind


class ReadTensor(Protocol):
    """Reads the tensors of a checkpoint."""

    def __call__(self, name: str, kind: TensorKind, span: tuple[int, int] | None = None) -> Tensor:
        """Return a whole tensor on the CPU, or the elements [start, stop) of the flattened one."""
        ...


class Backend(Protocol):
    """Weights, gradients and optimizer of one rank. All ranks call every method but `device` together."""

    @property
    def device(self) -> torch.device:
        """The device on which batches are computed."""
        ...

    def sequence_logps(self, batch: Batch) -> Tensor:
        """Return the summed log-probability of every sequence's response, [S] in fp32, with a graph.

        With soft targets [S, 2]: its mean under the targets, and, detached, that of the response itself.
        """
        ...

    def sequence_logps_and_entropies(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of `sequence_logps`, and every sequence's summed entropy in nats, [S], detached.

        The entropies are those of the distributions from which the tokens are drawn.
        """
        ...

    def frozen_sequence_logps(self, batch: Batch) -> Tensor:
        """Return the log-probabilities of `sequence_logps` without a graph."""
        ...

    def reference_sequence_logps(self, batch: Batch) -> Tensor:
        """Return the reference's summed log-probabilities, [S], without a graph.

        They come from a second, frozen model if the backend has one, otherwise from the policy without its adapters.
        Without either they come from the policy itself, which is the reference only before its first step.
        """
        ...

    def plain_sequence_logps(self, batch: Batch) -> Tensor:
        """Return the log-probability of one padded sequence, [1], computed by plain Transformers without a graph."""
        ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of this rank's share of the step's loss; the step's gradient is the *sum* over ranks.

        `is_last` is true for this rank's last micro-batch of the step.
        """
        ...

    def optimizer_step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; return the global gradient norm before clipping.

        If the norm is not finite, neither weights nor moments change.
        """
        ...

    def parameter_names(self) -> list[str]:
        """Return the Hugging Face names of the trainable parameters, in a fixed order."""
        ...

    def host_tensor(self, item: Item) -> Tensor:
        """Return an empty CPU tensor for a whole tensor: fp32, or the dtype of a model without master weights."""
        ...

    def gather(self, shares: Sequence[Sequence[Item]], host: Mapping[Item, Tensor]) -> None:
        """Copy whole tensors, assembled from all ranks, to the CPU: to every rank the items of its share.

        `shares` is the same on all ranks, `host` has a tensor for every item of this rank's share. Pass the tensors of
        the last call again where possible, because new memory takes longer.
        """
        ...

    def restore(self, num_steps_done: int, read: ReadTensor) -> None:
        """Restore master weights and optimizer state as they were after `num_steps_done` steps."""
        ...
