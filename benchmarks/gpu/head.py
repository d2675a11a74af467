"""Part: log-probabilities from hidden states, forward and backward, by size of chunk; logits in fp32 in two ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.rows import Figures
from benchmarks.gpu.work import Work, median_seconds, part_main, peak_mib, rounded
from wrpo_engine.training.models.logps import Head, LogitsBudget, Targets, token_logps

CHUNKS = (512, 1024, 2048, 2092, 4096, 8192)
"""Tokens; 2,092 is what a budget of elements gives if it is not rounded to a multiple of 128."""


def act(work: Work) -> None:
    tokens = work.pick(4096, 64)
    generator = torch.Generator(work.device).manual_seed(7)

    def draw(*shape: int, scale: float) -> Tensor:
        values = torch.randn(shape, generator=generator, device=work.device) * scale
        return values.to(work.dtype).requires_grad_()

    hidden = draw(tokens, work.size.hidden, scale=1.0)
    weight = draw(work.size.vocabulary, work.size.hidden, scale=work.size.hidden**-0.5 * 4)
    targets = torch.randint(work.size.vocabulary, (tokens,), generator=generator, device=work.device)
    exact = exact_logps(hidden, weight, targets)

    default = LogitsBudget.of(weight.device.type, len(weight))
    budgets = {"the engine's defaults": default}
    budgets |= {
        f"chunks of {chunk} tokens": replace(default, chunk=chunk, alignment=1) for chunk in work.pick(CHUNKS, (16, 17))
    }
    budgets |= {"no kept softmax": replace(default, kept_bytes=0)}
    for name, chosen in budgets.items():
        work.rows.measure(name, partial(measure, work, hidden, weight, targets, exact, chosen))
    for name, product in PRODUCTS.items():
        work.rows.measure(name, partial(measure_product, work, hidden, weight, targets, exact, product))


def measure(
    work: Work, hidden: Tensor, weight: Tensor, targets: Tensor, exact: Tensor, budget: LogitsBudget
) -> Figures:
    def step() -> Tensor:
        logps = token_logps(hidden, Head(weight), Targets(targets), budget=budget).logps_R
        torch.autograd.grad(logps.sum(), (hidden, weight))
        return logps.detach()

    return _figures(work, step, exact, clock="step_ms")


def exact_logps(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 256) -> Tensor:
    """Return [R] in float64 of the first chunk of tokens; the others follow the same distribution."""
    with torch.no_grad():
        logits = hidden[:chunk].double() @ weight.double().T
        return torch.log_softmax(logits, -1).gather(-1, targets[:chunk, None])[:, 0]


def rounded_product(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.T).float()


def accumulated_product(hidden: Tensor, weight: Tensor) -> Tensor:
    product: Any = torch.mm  # its annotations lack out_dtype
    logits: Tensor = product(hidden, weight.T, out_dtype=torch.float32) if hidden.is_cuda else hidden @ weight.T
    return logits


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logits only: rounded to the weights' dtype, then fp32": rounded_product,
    "logits only: fp32 of the accumulators": accumulated_product,
}


def measure_product(
    work: Work,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    exact: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
) -> Figures:
    """Measure the logits of one chunk without gradients."""
    tokens = min(2048, len(hidden))

    def step() -> Tensor:
        with torch.no_grad():
            logits = product(hidden[:tokens], weight)
            picked = logits.gather(-1, targets[:tokens, None])[:, 0]
            return picked - logits.logsumexp(-1)

    return _figures(work, step, exact, clock="product_ms")


def _figures(work: Work, step: Callable[[], Tensor], exact: Tensor, *, clock: str) -> Figures:
    seconds = median_seconds([step], warm_up=2, rounds=work.pick(5, 2))
    error = (step()[: len(exact)].double() - exact).abs().max()
    return rounded({clock: seconds * 1e3, "peak_mib": peak_mib(step), "largest_error": float(error)})


if __name__ == "__main__":
    part_main(act)
