"""Self-check of the model's log-probabilities against plain Transformers, once before training.

Policy and reference run the same code. So they agree even if that code omits a part of an architecture, such as a soft
cap of scores or a head with additional layers. The check computes one row of the data a second time, with the model's
own forward method and its reference attention, one sequence at a time. It splits each response into two halves: a model
that looks ahead assigns the first half another probability when the second half is absent.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from wrpo_engine.errors import ConfigError
from wrpo_engine.training.backends.base import Backend
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.reference.agreement import Disagreement, largest_disagreement, tolerance

log = logging.getLogger("wrpo_engine")

_TOKENS = 256
"""Maximum tokens of the prompt and of each response, because all logits of one sequence are in memory at once."""


def require_plain_results(backend: Backend, row: TokenRow, layout: Layout, *, precision: str, model: str) -> None:
    """Raise ConfigError if the row's log-probabilities differ from plain Transformers; all ranks call this together."""
    found = difference_from_plain(backend, row, layout)
    bound = tolerance(found, precision)
    log.info("log-probabilities differ from plain Transformers by at most %.2g per token", found.per_token)
    # NaN is left to the check of the first step's losses, which names the rows.
    if not found.per_token > bound:
        return
    hint = (
        "Use another architecture: the attention or the head of this one has a part that the engine does not implement."
    )
    raise ConfigError(
        "target.model",
        model,
        f"with layout {layout} its log-probabilities differ from those of plain Transformers by {found.per_token:.3g} "
        f"per token on a response of {found.num_tokens} tokens of row {found.row_id} (tolerance {bound:.3g})",
        hint if layout is Layout.PADDED else "Set training.layout to padded.",
        code="ModelDiffers",
    )


def difference_from_plain(backend: Backend, row: TokenRow, layout: Layout) -> Disagreement:
    """Return the response of the row on which the engine and plain Transformers differ most."""
    short = replace(
        row,
        prompt=row.prompt[-_TOKENS:],
        responses=tuple(response[:_TOKENS] for response in row.responses),
        fused=None,
    )
    batch = collate([short], layout).to(backend.device)
    ours_S = backend.frozen_sequence_logps(batch)
    alone = [replace(short, responses=(response,)) for response in short.responses]
    plain_S = torch.cat([_plain_logps(backend, one) for one in alone])
    return largest_disagreement(batch, ours_S, plain_S)


def _plain_logps(backend: Backend, row: TokenRow) -> Tensor:
    """Return [1], the log-probability of the row's one response: the sum of those of its halves."""
    return torch.stack([backend.plain_sequence_logps(collate([half]).to(backend.device)) for half in _halves(row)]).sum(
        0
    )


def _halves(row: TokenRow) -> tuple[TokenRow, ...]:
    (response,) = row.responses
    cut = len(response) // 2
    if not cut:
        return (row,)
    first, second = response[:cut], response[cut:]
    return (
        replace(row, responses=(first,)),
        replace(row, prompt=(*row.prompt, *first), responses=(second,), prompt_has_loss=False),
    )
