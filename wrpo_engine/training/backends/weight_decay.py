"""Decoupled weight decay where DeepSpeed allows one group of parameters only: ZeRO stages 1 and 2.

There the optimizer's own decay is off. Right before its step the decayed parameters' fp32 master weights, of which each
rank holds fragments, are multiplied by 1 - learning rate * weight decay, as AdamW does with a group of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def decay_before_every_step(optimizer: Any, parameters: Iterable[Any], weight_decay: float) -> None:
    """Let `optimizer`, which DeepSpeed calls only for steps that it takes, decay these parameters of its one group."""
    decayed = list(parameters)

    def decay(inner: Any, _args: Any, _kwargs: Any) -> None:
        factor = 1 - inner.param_groups[0]["lr"] * weight_decay
        with torch.no_grad():
            for parameter in decayed:
                # None where no part of the parameter is this rank's.
                if parameter._hp_mapping is not None:  # noqa: SLF001 (as deepspeed.utils.safe_* do)
                    parameter._hp_mapping.hp_fragment.mul_(factor)  # noqa: SLF001

    optimizer.register_step_pre_hook(decay)
