"""Alpha and learning rate as functions of the step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.config import AlphaParams, OptimizerParams
from wrpo_engine.training.backends.schedule import learning_rate_at
from wrpo_engine.training.objectives.alpha import alpha_at

ALPHA = {
    "the first step uses 0": (0, 0.0),
    "step 1": (1, 0.0003215434083601286),
    "step 155": (155, 0.04983922829581994),
    "the last step": (310, 0.09967845659163987),
}


@pytest.mark.parametrize(("step", "expected"), ALPHA.values(), ids=ALPHA.keys())
def test_linear_alpha_equals_the_released_code(step: int, expected: float) -> None:
    assert alpha_at(step, 311, AlphaParams(max=0.1)) == pytest.approx(expected, abs=1e-18)


def test_constant_alpha_is_its_maximum_at_every_step() -> None:
    params = AlphaParams(schedule="Constant", max=0.3)
    assert [alpha_at(step, 4, params) for step in range(4)] == [0.3] * 4


def test_a_step_beyond_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step is 4 but must be in \[0, 4\)"):
        alpha_at(4, 4, AlphaParams())


@given(steps=st.integers(1, 500), maximum=st.floats(0, 1))
def test_linear_alpha_grows_from_zero_and_stays_below_its_maximum(steps: int, maximum: float) -> None:
    values = [alpha_at(step, steps, AlphaParams(max=maximum)) for step in range(steps)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] <= maximum


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("num_steps", [1, 7, 30, 311])
def test_the_learning_rate_equals_the_hugging_face_trainers(kind: str, num_steps: int) -> None:
    import math

    from transformers import get_scheduler

    params = OptimizerParams.model_validate({"learning_rate": 3e-7, "lr_scheduler_type": kind, "warmup_ratio": 0.1})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=params.learning_rate)
    scheduler = get_scheduler(kind, optimizer, math.ceil(num_steps * 0.1), num_steps)
    theirs = []
    for _ in range(num_steps):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = [learning_rate_at(step, num_steps, params) for step in range(num_steps)]
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_a_constant_rate_follows_the_warm_up() -> None:
    params = OptimizerParams(learning_rate=1.0, lr_scheduler_type="constant", warmup_ratio=0.4)
    assert [learning_rate_at(step, 5, params) for step in range(5)] == [0.0, 0.5, 1.0, 1.0, 1.0]


RATES = {
    "without warm-up the first step has the full rate": ("linear", 0.0, 0, 4, 1.0),
    "warm-up starts at 0": ("constant", 0.5, 0, 4, 0.0),
    "warm-up of two steps": ("constant", 0.5, 1, 4, 0.5),
    "the step after the warm-up has the full rate": ("linear", 0.5, 2, 4, 1.0),
    "half of the line": ("linear", 0.5, 3, 4, 0.5),
    "half of the cosine": ("cosine", 0.0, 2, 4, 0.5),
    "a third of the cosine": ("cosine", 0.0, 1, 3, 0.75),
    "the end of the line": ("linear", 0.0, 1, 1, 0.0),
    "the end of the cosine": ("cosine", 0.0, 1, 1, 0.0),
    "a warm-up of the whole run": ("linear", 1.0, 3, 4, 0.75),
}


@pytest.mark.parametrize(("kind", "warmup", "step", "num_steps", "expected"), RATES.values(), ids=RATES.keys())
def test_the_learning_rate_of_a_step(kind: str, warmup: float, step: int, num_steps: int, expected: float) -> None:
    params = OptimizerParams.model_validate({"learning_rate": 1e-3, "lr_scheduler_type": kind, "warmup_ratio": warmup})
    assert learning_rate_at(step, num_steps, params) == pytest.approx(1e-3 * expected, abs=1e-12)
