"""Part: 300 steps, each with another mask. FlexAttention must not compile again, not fall back and not differ.

Every step computes loss and gradients twice on the same weights, with the engine's attention and by segment, and then
changes the weights by the engine's gradients.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.gpu.layers import attention_by_segment, replaced
from benchmarks.gpu.rows import Figures, Row
from benchmarks.gpu.work import Work, batches_of, loss_of, model_of, part_main, rounded
from benchmarks.training.workload import ModelSize
from wrpo_engine.training.batch.collate import Batch
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.models.model import LogpModel

WARM_UP_STEPS = 10
LEARNING_RATE = 1e-3
"""Of the gradient divided by its norm, which moves all weights together by this length."""
LOSS_TOLERANCE = 0.02
"""Relative, in bfloat16."""
GRADIENT_TOLERANCE = {"v_proj": 0.1, "o_proj": 0.1, "q_proj": 0.5, "k_proj": 0.5}
"""Norm of the difference over the norm, for the weights next to the attention. Gradients through the softmax are small
differences of large numbers, so that rounding is a larger share of them."""
SIZES = {64: ModelSize(2, 2048, 8192, 32, 8, 32000), 128: ModelSize(2, 4096, 8192, 32, 8, 32000)}
"""By head size."""
_MODELS = "wrpo_engine.training.models."
_FALLBACK = "attend_by_segment"


@dataclass
class Observed:
    """What 300 steps have shown."""

    steps: int = 0
    compilations_after_warm_up: int = 0
    fallbacks: int = 0
    """Layers that were computed by segment although FlexAttention was to compute them."""
    loss_difference: float = 0.0
    gradient_difference: float = 0.0
    """The largest, in units of its tolerance."""
    seconds: list[float] = field(default_factory=list)
    problem: str | None = None
    """First step whose figures are wrong."""


def act(work: Work) -> None:
    for head_size, size in work.pick(SIZES, {64: work.size}).items():
        name = f"head size {head_size}"
        work.rows.measure(name, lambda size=size, name=name: measure(work, size, name))  # type: ignore[misc]


def measure(work: Work, size: ModelSize, name: str) -> Figures:
    """Return the figures of a size; a run that is wrong gets a second row, with the error."""
    model = LogpModel(model_of(work, size), Layout.SHARED_PREFIX)
    count = work.pick(300, 12)
    rows = work.micro_batches(count, size)
    observed = soak(model, lambda step: batches_of(work, [rows[step]], Layout.SHARED_PREFIX)[0], count)
    if observed.problem is not None:
        work.rows.add(Row.failed(f"{name}, what was wrong", f"SoakError: {observed.problem}"))
    return {
        "steps": observed.steps,
        "compilations_after_warm_up": observed.compilations_after_warm_up,
        "fallbacks": observed.fallbacks,
        **rounded(
            {
                "loss_difference": observed.loss_difference,
                "gradient_difference": observed.gradient_difference,
                "step_ms": sum(observed.seconds) / len(observed.seconds) * 1e3,
            }
        ),
    }


def soak(model: LogpModel, batch_of: Callable[[int], Batch], steps: int) -> Observed:
    """Train for some steps; stop at the first whose loss or gradient is not finite or not the one by segment."""
    observed = Observed()
    compiled = 0
    for step in range(steps):
        if step == min(WARM_UP_STEPS, steps - 1):
            compiled = compilations()
        batch = batch_of(step)
        with attention_by_segment():
            expected = compute(model, batch)
        with counted_fallbacks() as fallbacks:
            started = time.perf_counter()
            own = compute(model, batch)
            observed.seconds.append(time.perf_counter() - started)
        observed.steps, observed.fallbacks = step + 1, observed.fallbacks + len(fallbacks)
        observed.problem = compare(observed, own, expected)
        if observed.problem is not None:
            break
        change_weights(model, own.norm)
    observed.compilations_after_warm_up = compilations() - compiled
    if observed.problem is None:
        observed.problem = wrong_counts(observed)
    return observed


@dataclass(frozen=True)
class Computed:
    """One computation of a step."""

    loss: float
    norm: float
    """Norm of all gradients."""
    gradients: Mapping[str, Tensor]
    """Of the weights next to the attention."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def compute(model: LogpModel, batch: Batch) -> Computed:
    """Compute loss and gradients, which are left in the parameters."""
    model.zero_grad(set_to_none=True)
    loss = loss_of(model(batch=batch))
    loss.backward()  # type: ignore[no-untyped-call]
    watched = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and _projection(name) in GRADIENT_TOLERANCE
    }
    every = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return Computed(float(loss.detach()), float(nn.utils.get_total_norm(every)), watched)


def _projection(name: str) -> str:
    return name.split(".")[-2]


def change_weights(model: nn.Module, norm: float) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data.add_(parameter.grad, alpha=-LEARNING_RATE / norm)


def compare(observed: Observed, own: Computed, expected: Computed) -> str | None:
    """Add a step's differences; return what is wrong with it, or None."""
    losses = f"the loss is {own.loss:.6g}, by segment {expected.loss:.6g}"
    if not (own.is_finite and expected.is_finite):
        return f"step {observed.steps}: {losses}; the gradients' norm is {own.norm:.6g}, by segment {expected.norm:.6g}"
    difference = abs(own.loss - expected.loss) / max(abs(expected.loss), 1.0)
    observed.loss_difference = max(observed.loss_difference, difference)
    if difference > LOSS_TOLERANCE:
        return f"step {observed.steps}: {losses}"
    shares = {name: _share_of_tolerance(name, own, expected) for name in own.gradients}
    worst = max(shares, key=shares.__getitem__)
    observed.gradient_difference = max(observed.gradient_difference, shares[worst])
    if shares[worst] > 1:
        return f"step {observed.steps}: the gradient of {worst} differs by {shares[worst]:.3g} times the tolerance"
    return None


def _share_of_tolerance(name: str, own: Computed, expected: Computed) -> float:
    ours, theirs = own.gradients[name].float(), expected.gradients[name].float()
    norm = max(float(theirs.norm()), 1e-6 * expected.norm)
    return float((ours - theirs).norm()) / norm / GRADIENT_TOLERANCE[_projection(name)]


def wrong_counts(observed: Observed) -> str | None:
    if observed.compilations_after_warm_up:
        return f"{observed.compilations_after_warm_up} compilations after step {WARM_UP_STEPS}, but none is allowed"
    if observed.fallbacks:
        return f"{observed.fallbacks} layers were computed by segment, but none is allowed"
    return None


def compilations() -> int:
    """Return how many graphs this process has compiled."""
    return int(counters["stats"]["unique_graphs"])


@contextmanager
def counted_fallbacks() -> Iterator[list[int]]:
    """Collect the number of tokens of every call of attention by segment, wherever the engine's modules have it."""
    calls: list[int] = []
    homes = [module for name, module in sys.modules.items() if name.startswith(_MODELS) and hasattr(module, _FALLBACK)]
    original = getattr(homes[0], _FALLBACK)

    def counted(query: Tensor, *arguments: Any) -> Tensor:
        calls.append(query.shape[2])
        output: Tensor = original(query, *arguments)
        return output

    with ExitStack() as stack:
        for module in homes:
            stack.enter_context(replaced(module, _FALLBACK, counted))
        yield calls


if __name__ == "__main__":
    part_main(act)
