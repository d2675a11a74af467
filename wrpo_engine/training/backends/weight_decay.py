"""Decoupled weight decay where DeepSpeed allows one group of parameters only: ZeRO stages 1 and 2.

The optimizer's own decay is off there. Right before each step the fp32 master weights of the decayed parameters, of
which each rank holds fragments, are multiplied by 1 - learning rate * weight decay. AdamW does the same with a separate
group.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def decay_before_every_step(optimizer: Any, parameters: Iterable[Any], weight_decay: float) -> None:
    """Register a hook on `optimizer` that decays these parameters of its one group before every step.

    DeepSpeed calls the optimizer only for steps that it does not skip.
    """
    decayed = list(parameters)

    def decay(inner: Any, _args: Any, _kwargs: Any) -> None:
        factor = 1 - inner.param_groups[0]["lr"] * weight_decay
        with torch.no_grad():
            for parameter in decayed:
                # None if this rank holds no part of the parameter.
                if parameter._hp_mapping is not None:  # noqa: SLF001 (as deepspeed.utils.safe_* do)
                    parameter._hp_mapping.hp_fragment.mul_(factor)  # noqa: SLF001

    optimizer.register_step_pre_hook(decay)
