"""Reward divergence: the rule step by step, and its state after a restart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from engine_support import NOON
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.config import TrainParams
from wrpo_engine.process.progress import Progress, ProgressState, trainer_status
from wrpo_engine.training.objectives.divergence import LIMIT_NATS, WINDOW, RewardDivergence


def params(**settings: Any) -> TrainParams:
    return TrainParams.model_validate({"model": {"name": "/m"}, "beta": 0.1, **settings})


def row(fall: float, margin: float, *, length: float = 20.0) -> dict[str, float]:
    """A WRPO-DPO row in which only the target's response has fallen, by `fall` nats per token."""
    return {
        "step": 7,
        "margin": margin,
        "rewards_source_chosen": 0.0,
        "rewards_target_chosen": -0.1 * fall * length,
        "lengths_source_chosen": 10.0,
        "lengths_target_chosen": length,
        "logps_source_chosen": -30.0,
        "logps_target_chosen": -60.0,
    }


def observed(watch: RewardDivergence, rows: list[dict[str, float]]) -> list[float]:
    return [watch.observe(each) for each in rows]


FALLING = [row(0.3 * step, 0.1 * step) for step in range(12)]


def test_a_fall_beyond_the_limit_while_the_margin_grows_is_a_divergence_and_stays_one() -> None:
    values = observed(RewardDivergence(params()), [*FALLING, row(0.0, 0.0)])
    # The later window's mean fall passes 1 nat at once when both windows are full: steps 6 to 10, mean 0.3 * 7.
    assert values == [0.0] * 9 + [1.0] * 4


CALM = {
    "a fall without a growing margin": [row(0.3 * step, 1.0) for step in range(30)],
    "a growing margin without a fall": [row(0.0, 0.1 * step) for step in range(30)],
    "a fall below the limit": [row(0.9 * LIMIT_NATS, 0.1 * step) for step in range(30)],
    "a single outlier": [row(4.0 if step == 20 else 0.1, 0.1 * step) for step in range(30)],
    "a rising response": [row(-5.0, 0.1 * step) for step in range(30)],
}


@pytest.mark.parametrize("rows", CALM.values(), ids=CALM.keys())
def test_what_is_no_divergence(rows: list[dict[str, float]]) -> None:
    assert set(observed(RewardDivergence(params()), rows)) == {0.0}


READINGS = {
    "length-normalised DPO": ({"length_normalized": True}, lambda fall, length: -0.1 * fall),
    "IPO on sums": ({"objective": "WRPO-IPO"}, lambda fall, length: -fall * length),
    "IPO on means": ({"objective": "WRPO-IPO", "ipo_mean": True}, lambda fall, length: -fall),
}


@pytest.mark.parametrize(("settings", "reward"), READINGS.values(), ids=READINGS.keys())
def test_every_objectives_rewards_are_read_as_nats_per_token(settings: dict[str, Any], reward: Any) -> None:
    rows = [{**each, "rewards_target_chosen": reward(0.3 * step, 20.0)} for step, each in enumerate(FALLING)]
    assert observed(RewardDivergence(params(**settings)), rows) == observed(RewardDivergence(params()), FALLING)


def test_simpo_compares_with_its_own_first_step() -> None:
    rows = [
        {
            "margin": 0.1 * step,
            "rewards_chosen": -0.1 * (2 + 0.3 * step),
            "logps_chosen": -20.0 * (2 + 0.3 * step),
            "lengths_chosen": 20.0,
        }
        for step in range(12)
    ]
    assert observed(RewardDivergence(params(objective="SimPO")), rows) == [0.0] * 9 + [1.0] * 3


@given(cut=st.integers(0, 12))
def test_a_restored_state_continues_as_if_uninterrupted(cut: int) -> None:
    whole, first, second = (RewardDivergence(params()) for _ in range(3))
    observed(first, FALLING[:cut])
    second.restore(json.loads(json.dumps(first.state())))
    observed(second, FALLING[cut:])
    observed(whole, FALLING)
    assert second == whole


def test_the_warning_says_what_to_do() -> None:
    watch = RewardDivergence(params())
    observed(watch, FALLING[: 2 * WINDOW])
    assert watch.warning(10) == (
        "reward divergence at step 10: the chosen responses have become less probable by 2.10 nats per token while "
        "the margin grows; lower training.learningRate, raise training.beta (IPO: training.tau) or set "
        "training.nllWeight"
    )


class Posts:
    """What is posted to the operator, without a pause between two posts."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def show(self, state: ProgressState) -> None:
        status = trainer_status(state, NOON)["trainerStatus"]
        self.metrics.append({entry["name"]: float(entry["value"]) for entry in status["metrics"]})

    def close(self) -> None:
        """Nothing is open."""


def test_a_run_with_a_ruinous_learning_rate_reports_it(local_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Also when the chosen response falls because the rejected one, which shares its tokens, is pushed down."""
    posts = Posts()
    run = local_run(
        learning_rate=0.05,
        epochs=6,
        lr_scheduler_type="constant",
        warmup_ratio=0,
        beta=0.5,
        run={"progress": Progress([posts])},
    )
    run.run()
    values = [row["reward_divergence"] for row in run.metrics()]
    assert values == sorted(values)
    assert values[0] == 0.0
    assert values[-1] == 1.0
    assert caplog.text.count("reward divergence at step") == 1
    assert [metrics["reward_divergence"] for metrics in posts.metrics] == values
    assert {*posts.metrics[-1]} == {"loss", "alpha", "margin", "reward_divergence"}


def test_a_healthy_run_reports_none(local_run: Any) -> None:
    run = local_run(epochs=6)
    run.run()
    assert {row["reward_divergence"] for row in run.metrics()} == {0.0}
