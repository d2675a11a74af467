"""AdamW with compact moments: exact for numbers of the grid, unbiased for others, close to AdamW over many steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wrpo_engine.errors import Interrupted
from wrpo_engine.training.backends.compact_adamw import _GRIDS as GRIDS
from wrpo_engine.training.backends.compact_adamw import BLOCK, CompactAdamW, Moments, decode, encode, to_bfloat16

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}
KINDS: tuple[Moments, ...] = ("bfloat16", "8bit")


def moments_of(name: str, count: int = 1000, *, decades: float = 6.0) -> Tensor:
    """Numbers of many sizes; second moments are squares."""
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(count, generator=generator) * 10 ** (-decades * torch.rand(count, generator=generator))
    return values**2 if name == "exp_avg_sq" else values


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("count", [1, 255, 256, 1000])
def test_a_number_of_the_grid_is_stored_exactly_whatever_is_drawn(name: str, count: int) -> None:
    grid = GRIDS[name]
    once = decode(*encode(moments_of(name, count), torch.rand(count), grid), grid)
    for draw in (0.0, 0.25, 0.5, 0.999):
        codes, tops = encode(once, torch.full((count,), draw), grid)
        assert (codes.dtype, tops.dtype, tops.numel()) == (torch.uint8, torch.int16, -(-count // BLOCK))
        assert torch.equal(decode(codes, tops, grid), once)


@pytest.mark.parametrize("name", GRIDS)
def test_the_nearest_numbers_are_one_step_of_the_grid_apart(name: str) -> None:
    values, grid = moments_of(name, BLOCK, decades=2.0), GRIDS[name]
    values = values[values.abs() > values.abs().max() * 2**-15]
    low, high = (decode(*encode(values, torch.full_like(values, draw), grid), grid) for draw in (0.999999, 0.0))
    step = 2 ** (1 / grid.per_octave)
    assert (high.abs() / low.abs()).max() <= step * 1.0001
    assert ((low.abs() <= values.abs() * 1.0001) & (high.abs() >= values.abs() * 0.9999)).all()
    assert torch.equal(low.sign(), values.sign())


@pytest.mark.parametrize("name", GRIDS)
def test_the_expected_value_is_kept(name: str) -> None:
    grid = GRIDS[name]
    values = torch.tensor([1.0, 0.3, 0.017, 2e-3]).repeat(BLOCK // 4).repeat(200)
    found = decode(*encode(values, torch.rand(len(values), generator=torch.Generator().manual_seed(1)), grid), grid)
    means = found.view(-1, 4).mean(dim=0)
    torch.testing.assert_close(means, values[:4], rtol=4e-3, atol=0)


def test_below_the_range_first_moments_become_zero_or_small_and_second_ones_never_zero() -> None:
    values = torch.full((BLOCK,), 1e-9)
    values[0] = 1.0
    noise = torch.linspace(0, 1, BLOCK + 1)[:-1]
    first = decode(*encode(values, noise, GRIDS["exp_avg"]), GRIDS["exp_avg"])
    second = decode(*encode(values, noise, GRIDS["exp_avg_sq"]), GRIDS["exp_avg_sq"])
    assert (first[2:] == 0).all()
    assert torch.allclose(second[1:], torch.tensor(2.0 ** (-254 / 12)))
    values[1] = 0.0
    assert decode(*encode(values, noise, GRIDS["exp_avg_sq"]), GRIDS["exp_avg_sq"])[1] == 0.0
    nothing = torch.zeros(BLOCK)
    assert torch.equal(decode(*encode(nothing, noise, GRIDS["exp_avg"]), GRIDS["exp_avg"]), nothing)


def test_bfloat16_is_rounded_to_a_neighbour_and_keeps_the_expected_value() -> None:
    values = torch.full((2**16,), 1.0 + 1 / 512)
    rounded = to_bfloat16(values, torch.arange(2**16, dtype=torch.int32))
    assert set(rounded.tolist()) == {1.0, 1.0 + 1 / 128}
    assert rounded.double().mean() == pytest.approx(1.0 + 1 / 512, abs=1e-6)
    assert torch.equal(to_bfloat16(-values, torch.zeros(2**16, dtype=torch.int32)), -torch.ones(2**16).bfloat16())


class Problem:
    """Noisy gradients of many sizes around a mean, for one optimizer."""

    def __init__(self, moments: Moments | None, count: int = 2000, *, weight_decay: float = 0.0) -> None:
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, count))
        self.sizes = 10 ** torch.linspace(-3, 0, count)[torch.randperm(count, generator=self.generator(0))]
        settings = {**SETTINGS, "weight_decay": weight_decay}
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW([self.weight], **settings)
            if moments is None
            else CompactAdamW([self.weight], moments=moments, **settings)
        )

    @staticmethod
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def run(self, first: int, last: int) -> Problem:
        for step in range(first, last):
            noise = torch.randn(len(self.sizes), generator=self.generator(step + 1))
            self.weight.grad = (noise + 0.3) * self.sizes
            self.optimizer.step()
        return self


BOUNDS = {"bfloat16": (0.02, 0.06, 0.01), "8bit": (0.08, 0.25, 0.02)}
"""Of the change of weights: mean error; of the second moment: spread and mean of the relative error."""


@pytest.mark.parametrize("moments", KINDS)
def test_many_steps_stay_close_to_adamw_and_the_second_moment_neither_freezes_nor_drifts(moments: Moments) -> None:
    ours, theirs = (Problem(kind, weight_decay=0.1).run(0, 600) for kind in (moments, None))
    start = torch.linspace(-1, 1, 2000)
    of_weights, spread, drift = BOUNDS[moments]
    difference = (ours.weight - theirs.weight).abs().mean() / (theirs.weight - start).abs().mean()
    assert difference < of_weights
    assert isinstance(ours.optimizer, CompactAdamW)
    exact = theirs.optimizer.state[theirs.weight]["exp_avg_sq"]
    error = ours.optimizer.read(ours.weight, "exp_avg_sq", 0, 2000) / exact - 1
    assert error.std() < spread
    assert abs(error.mean()) < drift


@pytest.mark.parametrize("moments", KINDS)
def test_a_resumed_optimizer_continues_bit_for_bit(moments: Moments) -> None:
    whole = Problem(moments).run(0, 12)
    first, second = Problem(moments).run(0, 5), Problem(moments)
    assert isinstance(first.optimizer, CompactAdamW)
    assert isinstance(second.optimizer, CompactAdamW)
    with torch.no_grad():
        second.weight.copy_(first.weight)
    second.optimizer.make_state(second.weight, 5)
    for name in ("exp_avg", "exp_avg_sq"):
        second.optimizer.write(second.weight, name, first.optimizer.read(first.weight, name, 0, 2000))
    second.run(5, 12)
    assert torch.equal(second.weight, whole.weight)
    for start, stop in ((0, 2000), (255, 257), (1000, 1001)):
        assert isinstance(whole.optimizer, CompactAdamW)
        ours, theirs = (one.optimizer.read(one.weight, "exp_avg", start, stop) for one in (second, whole))  # type: ignore[attr-defined]
        assert torch.equal(ours, theirs)
        assert ours.numel() == stop - start


@pytest.mark.parametrize(("moments", "size"), [("bfloat16", 4.0), ("8bit", 2 + 2 * 2 / BLOCK)])
def test_the_moments_take_the_stated_bytes(moments: Moments, size: float) -> None:
    problem = Problem(moments, BLOCK * 40).run(0, 1)
    state = problem.optimizer.state[problem.weight]
    taken = sum(tensor.numel() * tensor.element_size() for name, tensor in state.items() if name != "step")
    assert taken / problem.weight.numel() == size


def test_chunks_and_groups_of_parameters_do_not_matter_to_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step is that of AdamW: moments are rounded after they are used."""
    monkeypatch.setattr("wrpo_engine.training.backends.compact_adamw._CHUNK", 2 * BLOCK)
    ours, theirs = (Problem(kind, weight_decay=0.1).run(0, 1) for kind in ("8bit", None))
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("moments", KINDS)
def test_a_run_with_compact_moments_resumes_from_its_checkpoint_bit_for_bit(moments: Moments, local_run: Any) -> None:
    whole, broken = (local_run(name, optimizer_moments=moments) for name in ("whole", "broken"))
    whole.run()
    broken.stop_after = 3
    with pytest.raises(Interrupted):
        broken.run()
    broken.stop_after = None
    broken.run()
    weights = whole.weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in broken.weights().items())
    assert broken.metrics() == whole.metrics()
    plain = local_run("plain")
    plain.run()
    losses, exact = ([row["loss"] for row in run.metrics()] for run in (whole, plain))
    assert losses == pytest.approx(exact, abs=0.02)
    assert losses != exact


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("moments", KINDS)
def test_on_a_gpu_the_moments_stay_close_to_adamw_too(moments: Moments) -> None:
    made = []
    for kind in (moments, None):
        weight = torch.nn.Parameter(torch.zeros(5000, device="cuda"))
        settings = {**SETTINGS, "weight_decay": 0.0}
        optimizer: Any = (
            CompactAdamW([weight], moments=kind, **settings) if kind else torch.optim.AdamW([weight], **settings)
        )
        noise = torch.Generator("cuda").manual_seed(0)
        for _ in range(100):
            weight.grad = torch.randn(5000, device="cuda", generator=noise) + 0.3
            optimizer.step()
        made.append(weight.detach())
    ours, theirs = made
    assert (ours - theirs).abs().mean() / theirs.abs().mean() < 0.08
