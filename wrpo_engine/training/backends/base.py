"""What the training loop needs of whatever holds weights and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from wrpo_engine.training.batch.collate import Batch


class TensorKind(StrEnum):
    """What is kept for every trainable parameter."""

    WEIGHT = "weight"
    """The fp32 master weight."""
    EXP_AVG = "exp_avg"
    EXP_AVG_SQ = "exp_avg_sq"


ReadTensor = Callable[[str, TensorKind], Tensor]
"""Parameter name and kind -> the whole fp32 tensor on the CPU."""


class Backend(Protocol):
    """Weights, gradients and optimizer of one rank. All methods but `device` are called on all ranks together."""

    @property
    def device(self) -> torch.device: ...

    def sequence_logps(self, batch: Batch) -> Tensor:
        """Return the summed log-probability of every sequence's response, [S] in fp32, with a graph."""
        ...

    def sequence_logps_and_entropies(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the same, and every sequence's summed entropy (nats) of the distributions its tokens are drawn from,
        [S], detached.
        """
        ...

    def frozen_sequence_logps(self, batch: Batch) -> Tensor:
        """Return the same numbers without a graph."""
        ...

    def reference_sequence_logps(self, batch: Batch) -> Tensor:
        """Return the reference's numbers without a graph.

        They come from a second, frozen model if the backend was given one, else from the policy without its adapters;
        without either from the policy itself, which is the reference only before its first step.
        """
        ...

    def plain_sequence_logps(self, batch: Batch) -> Tensor:
        """Return the policy's numbers without a graph as plain Transformers computes them, of one padded sequence."""
        ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of this rank's share of the step's loss. The step's gradient is the *sum* over ranks."""
        ...

    def optimizer_step(self, learning_rate: float) -> float:
        """Clip, update, forget the gradients; return the global gradient norm before clipping.

        With a norm that is not finite neither weights nor moments are touched.
        """
        ...

    def parameter_names(self) -> list[str]:
        """Return the trainable parameters' names as the Hugging Face model knows them, in a fixed order."""
        ...

    def full_tensor(self, name: str, kind: TensorKind) -> Tensor:
        """Return the whole fp32 tensor on the CPU, assembled from all ranks."""
        ...

    def help_assemble(self, name: str, kind: TensorKind) -> None:
        """Do this rank's part where another rank asks for the whole tensor; nothing is copied or kept here."""
        ...

    def restore(self, num_steps_done: int, read: ReadTensor) -> None:
        """Put back master weights and optimizer state as they were after `num_steps_done` steps."""
        ...
