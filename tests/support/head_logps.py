"""Log-probabilities of a head that is given by its parts, with limits that differ from those of the device."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from wrpo_engine.training.batch.soft import SoftTargets
from wrpo_engine.training.models.logps import Head, HeadScaling, LogitsBudget, Targets, TokenLogps, token_logps


def head_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scaling: HeadScaling | None = None,
    chunk: int | None = None,
    kept_bytes: int | None = None,
    soft: SoftTargets | None = None,
    with_entropy: bool = False,
) -> TokenLogps:
    budget = LogitsBudget.of(weight.device.type, weight.shape[0])
    if chunk is not None:
        budget = replace(budget, chunk=chunk, alignment=1)
    if kept_bytes is not None:
        budget = replace(budget, kept_bytes=kept_bytes)
    head = Head(weight, bias, scaling or HeadScaling())
    return token_logps(hidden, head, Targets(targets, soft), budget=budget, with_entropy=with_entropy)
