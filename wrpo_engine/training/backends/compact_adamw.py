"""AdamW whose moments take two bytes or one for each element instead of four: `optimizerMoments`.

The arithmetic is that of torch's AdamW, in fp32. Only what is stored between steps is rounded:

- `bfloat16`: to one of the two neighbouring bf16 numbers;
- `8bit`: to one of the two neighbouring powers of 2^(1/k), stored as the power's distance from the largest one of a
  block of 256 elements. The first moment has a sign and k = 8, which covers a ratio of 2^15.8 within a block; the
  second one has k = 12, which covers 2^21, that is gradients whose sizes differ by a factor of 1,500. The second moment
  of an element below that range is raised to it, which makes its update smaller.

Which neighbour is drawn at random, with probabilities that keep the expected value. Rounding to the nearest one would
freeze the second moment: a step changes it by 0.1 %, which is less than half of the distance between numbers. The draw
is a function of the step and of the element's position. So a resumed run equals an uninterrupted one, and a moment that
is read and written unchanged does not move.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from wrpo_engine.seeds import seed_of

BLOCK = 256
"""Elements that share one range."""
_CHUNK = 2**22
"""Elements that are unpacked at a time; a multiple of BLOCK."""
MOMENTS = ("exp_avg", "exp_avg_sq")
Moments = Literal["bfloat16", "8bit"]


class _Grid(NamedTuple):
    """The numbers that 8 bits represent: zero, and `levels` powers of 2^(1 / per_octave) below a block's largest."""

    per_octave: int
    levels: int
    is_signed: bool


_GRIDS = {"exp_avg": _Grid(8, 127, is_signed=True), "exp_avg_sq": _Grid(12, 255, is_signed=False)}


def to_bfloat16(values: Tensor, noise: Tensor) -> Tensor:
    """Return fp32 values rounded to bf16 at random; `noise` is int32 below 2^16. A bf16 number stays as it is."""
    return ((values.view(torch.int32) + noise) & -65536).view(torch.float32).to(torch.bfloat16)


def encode(values: Tensor, noise: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Return (codes [n] uint8, tops [blocks] int16) of fp32 values [n], rounded at random.

    `noise` is uniform in [0, 1). A number of the grid stays as it is if the grid's range covers its block.
    """
    count = values.numel()
    padded = torch.nn.functional.pad(values, (0, -count % BLOCK)).view(-1, BLOCK)
    noise = torch.nn.functional.pad(noise, (0, -count % BLOCK)).view(-1, BLOCK)
    sizes = padded.abs()
    largest = sizes.amax(dim=1, keepdim=True)
    tops = _power_above(largest, grid)
    bottoms = tops - grid.levels + 1
    lower = torch.maximum(torch.floor(torch.log2(sizes) * grid.per_octave), bottoms)
    low, high = (_power(exponent, grid) for exponent in (lower, lower + 1))
    rises = noise * (high - low) < sizes - low
    codes = lower - bottoms + 1 + rises
    smallest = _power(bottoms, grid)
    # Of what is below the range, the first moment is zero or the smallest number, the second one never zero.
    below = (noise * smallest < sizes) if grid.is_signed else (sizes > 0)
    codes = torch.where(sizes < smallest, below.to(codes.dtype), codes).clamp_(max=grid.levels)
    codes = torch.where(largest > 0, codes, torch.zeros_like(codes)).to(torch.uint8)
    if grid.is_signed:
        codes |= (padded < 0).to(torch.uint8) << 7
    return codes.view(-1)[:count], torch.where(largest > 0, tops, torch.zeros_like(tops)).to(torch.int16).view(-1)


def decode(codes: Tensor, tops: Tensor, grid: _Grid) -> Tensor:
    """Return the fp32 values [n] of codes [n] and the tops of their blocks."""
    count = codes.numel()
    padded = torch.nn.functional.pad(codes, (0, -count % BLOCK)).view(-1, BLOCK)
    levels = padded & 127 if grid.is_signed else padded
    values = _power(tops.view(-1, 1).to(torch.float32) - grid.levels + levels, grid)
    values = torch.where(levels == 0, torch.zeros_like(values), values)
    if grid.is_signed:
        values = torch.where(padded > 127, -values, values)
    return values.view(-1)[:count]


def _power(exponent: Tensor, grid: _Grid) -> Tensor:
    return torch.exp2(exponent / grid.per_octave)


def _power_above(sizes: Tensor, grid: _Grid) -> Tensor:
    """Return the exponent of the smallest number of the grid that is at least `sizes`."""
    nearest = torch.round(torch.log2(sizes) * grid.per_octave)
    return nearest + (_power(nearest, grid) < sizes)


class CompactAdamW(torch.optim.Optimizer):
    """AdamW with compact moments, for flat fp32 partitions and for whole parameters.

    The state of a parameter is `step`, and for each moment either a bf16 tensor of its shape, or uint8 codes of its
    shape and the blocks' tops under `<moment>_tops`.
    """

    def __init__(  # noqa: PLR0913 - signature of torch.optim.AdamW
        self,
        params: Iterable[Any],
        *,
        moments: Moments,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.moments = moments

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None
        index = -1
        for group in self.param_groups:
            for parameter in group["params"]:
                index += 1
                if parameter.grad is not None and parameter.numel():
                    state = self.state[parameter] or self.make_state(parameter, 0)
                    state["step"] += 1
                    self._update(parameter, state, group, seed_of("moments", int(state["step"]), index))

    def make_state(self, parameter: Tensor, num_steps_done: int) -> dict[str, Tensor]:
        """Give a parameter the state after `num_steps_done` steps, with moments of zero, and return it."""
        # On the CPU, so that reading it does not wait for a GPU.
        state = {"step": torch.tensor(float(num_steps_done))}
        for name in MOMENTS:
            if self.moments == "bfloat16":
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16, requires_grad=False)
            else:
                state[name] = torch.zeros_like(parameter, dtype=torch.uint8, requires_grad=False)
                blocks = math.ceil(parameter.numel() / BLOCK)
                state[f"{name}_tops"] = torch.zeros(blocks, dtype=torch.int16, device=parameter.device)
        self.state[parameter] = state
        return state

    def read(self, parameter: Tensor, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of a flattened moment in fp32."""
        state = self.state[parameter]
        if self.moments == "bfloat16":
            values: Tensor = state[name].view(-1)[start:stop].to(torch.float32)
            return values
        first = start // BLOCK * BLOCK
        codes = state[name].view(-1)[first:stop]
        tops = state[f"{name}_tops"][first // BLOCK : math.ceil(stop / BLOCK)]
        return decode(codes, tops, _GRIDS[name])[start - first :]

    def write(self, parameter: Tensor, name: str, values: Tensor) -> None:
        """Store a whole flattened moment; numbers that `read` has returned are stored exactly."""
        for start in range(0, values.numel(), _CHUNK):
            part = slice(start, min(start + _CHUNK, values.numel()))
            self._store(self.state[parameter], name, part, values[part].to(parameter.device), None)

    def _update(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any], seed: int) -> None:
        draws = torch.Generator(parameter.device)
        draws.manual_seed(seed)
        beta1, beta2 = group["betas"]
        step = float(state["step"])
        size, root = 1 - beta1**step, math.sqrt(1 - beta2**step)
        weights, gradients = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        for start in range(0, weights.numel(), _CHUNK):
            part = slice(start, min(start + _CHUNK, weights.numel()))
            gradient = gradients[part].to(torch.float32)
            first, second = (self.read(parameter, name, part.start, part.stop) for name in MOMENTS)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            change = first / (second.sqrt() / root).add_(group["eps"])
            weight = weights[part]
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(change.to(weight.dtype), alpha=-group["lr"] / size)
            for name, values in zip(MOMENTS, (first, second), strict=True):
                self._store(state, name, part, values, draws)

    def _store(
        self, state: dict[str, Tensor], name: str, part: slice, values: Tensor, draws: torch.Generator | None
    ) -> None:
        """Round and store elements of a moment; without draws by the smallest noise, which moves no stored number."""
        shape, device = values.shape, values.device
        if self.moments == "bfloat16":
            noise = (
                torch.zeros(shape, dtype=torch.int32, device=device)
                if draws is None
                else torch.randint(2**16, shape, dtype=torch.int32, device=device, generator=draws)
            )
            state[name].view(-1)[part] = to_bfloat16(values, noise)
            return
        noise = (
            torch.full(shape, 0.5, device=device)
            if draws is None
            else torch.rand(shape, device=device, generator=draws)
        )
        codes, tops = encode(values, noise, _GRIDS[name])
        state[name].view(-1)[part] = codes
        state[f"{name}_tops"][part.start // BLOCK : math.ceil(part.stop / BLOCK)] = tops
