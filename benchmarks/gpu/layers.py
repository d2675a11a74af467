"""Part: forward and backward of an 8B model's layers, with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.rows import Figures
from benchmarks.gpu.work import Work, batches_of, loss_of, median_seconds, model_of, part_main, peak_mib, rounded
from wrpo_engine.training.batch.flops import ModelCost, needed_training_step
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.models import activation_recompute, attention
from wrpo_engine.training.models.attention_segments import ScoreRule, attend_by_segment
from wrpo_engine.training.models.fused import Kernel, fused_kernels
from wrpo_engine.training.models.model import LogpModel
from wrpo_engine.training.monitoring.mfu import peak_flops, utilisation


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A case: the difference from the engine's defaults."""

    name: str
    layout: Layout = Layout.SHARED_PREFIX
    by_segment: bool = False
    checkpointing: bool = False
    recomputes: bool = True
    """Layers keep inputs of norms and activations only (`activation_recompute`)."""
    kernels: tuple[Kernel, ...] = ()


CHANGES = (
    Change(name="the engine's defaults"),
    Change(name="attention by segment", by_segment=True),
    Change(name="gradient checkpointing", checkpointing=True),
    Change(name="activations as in Transformers", recomputes=False),
    Change(name="fused RMSNorm", kernels=(Kernel.RMS_NORM,)),
    Change(name="fused SwiGLU", kernels=(Kernel.SWIGLU,)),
    Change(name="fused RoPE", kernels=(Kernel.ROTARY,)),
    Change(name="all three fused", kernels=tuple(Kernel)),
    Change(name="all three fused, gradient checkpointing", kernels=tuple(Kernel), checkpointing=True),
    Change(name="packed layout", layout=Layout.PACKED),
    Change(name="padded layout, PyTorch's attention", layout=Layout.PADDED),
)


def act(work: Work) -> None:
    for change in CHANGES:
        work.rows.measure(change.name, lambda change=change: measure(work, change))  # type: ignore[misc]


def measure(work: Work, change: Change) -> Figures:
    rows = work.micro_batches(work.pick(3, 2))
    with changed_model(work, change) as model:
        batches = batches_of(work, rows, change.layout)

        def step(index: int) -> None:
            loss_of(model(batch=batches[index])).backward()  # type: ignore[no-untyped-call]
            model.zero_grad(set_to_none=True)

        steps = [lambda index=index: step(index) for index in range(len(batches))]
        seconds = median_seconds(steps, warm_up=work.pick(2, 1), rounds=work.pick(5, 1))
        memory = max(map(peak_mib, steps))
        cost = ModelCost.of(model.causal_lm)
    needed = sum(needed_training_step(cost, micro_batch) for micro_batch in rows) / len(rows)
    name = torch.cuda.get_device_name() if work.device.type == "cuda" else None
    peak = peak_flops(None, name, "bfloat16" if work.dtype is torch.bfloat16 else "float32")
    tokens = sum(batch.num_computed_tokens for batch in batches) / len(batches)
    return rounded(
        {
            "step_ms": seconds * 1e3,
            "tokens_per_s": tokens / seconds,
            "mfu": None if peak is None else utilisation(needed, seconds, devices=1, peak=peak),
            "peak_mib": memory,
            "tokens": tokens,
        }
    )


@contextmanager
def changed_model(work: Work, change: Change) -> Iterator[LogpModel]:
    """Build the model of a case; what it changes in the process is undone at the end."""
    causal_lm = model_of(work)
    if change.checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with ExitStack() as stack:
        if not change.recomputes:
            stack.enter_context(replaced(activation_recompute, "LEAN_ARCHITECTURES", frozenset()))
        model = LogpModel(causal_lm, change.layout)
        if change.kernels:
            stack.enter_context(fused_kernels(causal_lm, change.kernels))
        if change.by_segment:
            stack.enter_context(attention_by_segment())
        yield model


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    previous = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, previous)


@contextmanager
def attention_by_segment() -> Iterator[None]:
    """Compute the attention of packed and shared-prefix rows by plain operations, on every device."""
    from transformers import AttentionInterface

    AttentionInterface.register(attention.IMPLEMENTATION, _by_segment)
    try:
        yield
    finally:
        attention.register()


def _by_segment(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: Any,
    *,
    plan: Any,
    scaling: float,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    return attend_by_segment(query, key, value, ScoreRule(plan, scaling)), None


if __name__ == "__main__":
    part_main(act)
