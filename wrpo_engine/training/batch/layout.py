"""Sequence layouts of a micro-batch, and the architectures that support them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import torch
from torch import Tensor

from wrpo_engine.errors import ConfigError


class Layout(StrEnum):
    """The arrangement of sequences in one forward pass."""

    SHARED_PREFIX = "shared-prefix"
    """One row of tokens: each prompt once, then all its responses; each attends to the prompt and to itself only."""
    PACKED = "packed"
    """One row of tokens: whole sequences one after the other, each attends to itself only."""
    PADDED = "padded"
    """One row per sequence, padded on the right to one width."""


@dataclass(frozen=True, slots=True)
class Family:
    """Tokens that attend to each other: a causal prefix, and branches that follow it without a gap.

    A branch attends to the whole prefix and, causally, to itself. Spans are [start, stop) in the micro-batch's row of
    tokens.
    """

    prefix: tuple[int, int]
    branches: tuple[tuple[int, int], ...] = ()

    @property
    def stop(self) -> int:
        """End of the last span."""
        return self.branches[-1][1] if self.branches else self.prefix[1]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        start, stop = self.prefix
        return stop - start + max((end - begin for begin, end in self.branches), default=0)


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Attention among the T tokens of a micro-batch, passed through the model as a keyword argument."""

    families: tuple[Family, ...]
    positions_T: Tensor
    """Position of every token in its own sequence."""
    owners_2T: Tensor | None = field(default=None, compare=False, repr=False)
    """Result of `owners`, if it was computed ahead and copied to the device with the rest."""
    block_masks: dict[int | None, Any] = field(default_factory=dict, compare=False, repr=False)
    """Sliding window -> FlexAttention's block mask: built by the first layer that needs it, used by all others."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(family.longest for family in self.families)

    def owners(self) -> Tensor:
        """Return [2, T] int32: the family of every token, and its branch counted from 1; 0 is a prefix."""
        if self.owners_2T is not None:
            return self.owners_2T
        owners_2T = torch.zeros(2, self.families[-1].stop, dtype=torch.int32)
        branch = 0
        for index, family in enumerate(self.families):
            owners_2T[0, family.prefix[0] : family.stop] = index
            for start, stop in family.branches:
                branch += 1
                owners_2T[1, start:stop] = branch
        return owners_2T.to(self.positions_T.device)

    def pinned(self) -> AttentionPlan:
        """Return the plan with all tensors that a GPU needs in pinned memory."""
        return AttentionPlan(self.families, self.positions_T.pin_memory(), self.owners().pin_memory())

    def to(self, device: torch.device) -> AttentionPlan:
        """Return the plan on the device, copied asynchronously if it is pinned."""
        owners_2T = None if self.owners_2T is None else self.owners_2T.to(device, non_blocking=True)
        return AttentionPlan(self.families, self.positions_T.to(device, non_blocking=True), owners_2T)


VERIFIED_ARCHITECTURES = frozenset(
    {
        "cohere",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "starcoder2",
    }
)
"""Values of `model_type` whose packed and shared-prefix log-probabilities and gradients are tested against separate
sequences. Others may have state or biases that depend on the position in the row (ALiBi, linear attention, attention
sinks) and would be wrong without an error."""


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """The layout that runs, with the reason for the choice."""

    layout: Layout
    reason: str
    """Text for the log."""


def choose_layout(requested: Literal["auto", "shared-prefix", "packed", "padded"], config: Any) -> LayoutChoice:
    """Return the layout for a Hugging Face model config; raise ConfigError if the requested one would be wrong."""
    if requested == "padded":
        return LayoutChoice(Layout.PADDED, "as configured")
    model_type = getattr(config, "model_type", type(config).__name__)
    if model_type in VERIFIED_ARCHITECTURES:
        if requested == "packed":
            return LayoutChoice(Layout.PACKED, "as configured")
        return LayoutChoice(Layout.SHARED_PREFIX, f"{model_type} supports it")
    reason = f"architecture {model_type} is not among those verified for sequences that share a row of tokens"
    if requested == "auto":
        return LayoutChoice(Layout.PADDED, reason)
    raise ConfigError(
        "training.layout",
        requested,
        reason,
        f"Leave training.layout out or set it to padded. Verified: {', '.join(sorted(VERIFIED_ARCHITECTURES))}.",
    )
