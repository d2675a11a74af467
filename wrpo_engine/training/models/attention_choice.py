"""Choice of the attention at the start of a run: FlexAttention is tried on every rank, and all ranks decide alike.

The trial runs forward and backward over a few blocks of tokens, with the model's heads, dtype, soft cap and window, and
compares the results with attention by segment. A kernel that compiles forward only, or that returns wrong numbers, is
found before the first step and not in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from wrpo_engine.errors import ConfigError, first_line
from wrpo_engine.training.batch.layout import AttentionPlan, Family, Layout
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.models import attention, attention_flex
from wrpo_engine.training.models.attention_segments import ScoreRule, attend_by_segment

log = logging.getLogger("wrpo_engine")

_FIELD = "training.attention"
_FAMILIES = (Family((0, 140), ((140, 200), (200, 270))), Family((270, 290)), Family((290, 295), ((295, 310),)))
"""310 tokens: blocks of 128 that are whole, partial and without a pair of tokens."""
_WINDOW = 64
"""For models with sliding windows of any size, because the kernels do not depend on the size."""
_TOLERANCE = 0.05
"""Of the trial, relative to the largest element: bf16 rounds to 0.004."""

Requested = Literal["auto", "flex", "segments"]
Attend = Callable[[Tensor, Tensor, Tensor, ScoreRule], Tensor]


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What the kernels of a model's attention depend on."""

    heads: int
    key_value_heads: int
    head_size: int
    dtype: torch.dtype
    softcap: float | None = None
    has_window: bool = False

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype) -> AttentionShape:
        """Return the shape that a Hugging Face config describes."""
        heads = config.num_attention_heads
        softcap = getattr(config, "attn_logit_softcapping", None)
        return cls(
            heads=heads,
            key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype=dtype,
            softcap=float(softcap) if softcap else None,
            has_window=getattr(config, "sliding_window", None) is not None,
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """An attention that is to be tried: for which shape, and where."""

    shape: AttentionShape
    device: torch.device
    attend: Attend = attention_flex.attend_by_flex


def try_attention(trial: Trial) -> str | None:
    """Return why the attention cannot train this shape on the device, or None.

    Errors of the device itself are raised: memory that is exhausted, and states from which no kernel runs.
    """
    try:
        for window in (None, _WINDOW) if trial.shape.has_window else (None,):
            problem = _difference_from_segments(trial, window)
            if problem is not None:
                return problem
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # noqa: BLE001 (compilers raise errors of many kinds)
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _difference_from_segments(trial: Trial, window: int | None) -> str | None:
    shape, device, attend = trial.shape, trial.device, trial.attend
    positions_T = torch.tensor([position for family in _FAMILIES for position in _positions(family)])
    plan = AttentionPlan(_FAMILIES, positions_T).to(device)
    generator = torch.Generator().manual_seed(0)
    counts = (shape.heads, shape.key_value_heads, shape.key_value_heads, shape.heads)
    *heads, upstream = (
        torch.randn(1, count, len(positions_T), shape.head_size, generator=generator).to(device, shape.dtype)
        for count in counts
    )

    rule = ScoreRule(plan, shape.head_size**-0.5, shape.softcap, window)
    with torch.no_grad():  # The pass of the reference has another kernel.
        attend(heads[0], heads[1], heads[2], rule)

    def results(function: Attend, dtype: torch.dtype) -> tuple[Tensor, ...]:
        query, key, value = (tensor.detach().to(dtype).requires_grad_() for tensor in heads)
        output = function(query, key, value, rule)
        return output.detach(), *torch.autograd.grad(output, (query, key, value), upstream.transpose(1, 2).to(dtype))

    expected, found = results(attend_by_segment, torch.float32), results(attend, shape.dtype)
    for name, our, their in zip(("output", "query", "key", "value"), found, expected, strict=True):
        error = float((our.float() - their).abs().max() / their.abs().max())
        if not error <= _TOLERANCE:  # also for NaN
            what = "output" if name == "output" else f"gradient of the {name}"
            return f"its {what} differs from that of attention by segment by {error:.3g} of the largest element"
    return None


def _positions(family: Family) -> list[int]:
    """Return the position of every token in its own sequence; branches continue from the prompt's end."""
    prompt = family.prefix[1] - family.prefix[0]
    branches = (range(prompt, prompt + stop - start) for start, stop in family.branches)
    return [*range(prompt), *chain.from_iterable(branches)]


def choose_attention(requested: Requested, layout: Layout, trial: Trial, group: Group) -> None:
    """Try FlexAttention on a GPU and decide for all ranks, which call this together.

    Raise ConfigError for a requested attention that has no effect or does not work.
    """
    attention_flex.use_segments(False)
    if layout is Layout.PADDED:
        if requested != "auto":
            raise _refused(requested, "it has no effect: the layout padded uses Transformers' attention")
        return
    if requested == "segments" or (requested == "auto" and trial.device.type != "cuda"):
        return
    if trial.device.type != "cuda":
        raise _refused(requested, "FlexAttention trains on GPUs only, and this process has none")
    found = group.gather(try_attention(trial))
    failures = [(rank, problem) for rank, problem in enumerate(found) if problem is not None]
    if not failures:
        return
    rank, problem = failures[0]
    reason = f"FlexAttention failed its trial on {len(failures)} of {group.world_size} ranks; rank {rank}: {problem}"
    if requested == "flex":
        raise _refused(requested, reason)
    attention_flex.use_segments(True)
    if group.is_main:
        log.warning("%s. All ranks compute attention segment by segment, which is slower", reason)


def implementation(requested: Requested) -> str:
    """Return the name under which Transformers finds the attention."""
    return attention.SEGMENTS if requested == "segments" else attention.IMPLEMENTATION


def _refused(requested: str, rule: str) -> ConfigError:
    return ConfigError(_FIELD, requested, rule, f"Leave {_FIELD} out.")
