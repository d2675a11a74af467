"""Settings that cannot take effect are errors, and each objective has the loss of its formula."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from wrpo_engine.config import ModelRef, TrainParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.objectives.losses import PerResponse
from wrpo_engine.training.objectives.preference import preference_objective


def params(**settings: Any) -> TrainParams:
    return TrainParams.model_validate({"model": ModelRef(name="/m").model_dump(), **settings})


NO_EFFECT = {
    "label smoothing with IPO": ({"objective": "IPO", "label_smoothing": 0.1}, "training.labelSmoothing is 0.1"),
    "label smoothing with SimPO": ({"objective": "SimPO", "label_smoothing": 0.1}, "training.labelSmoothing is 0.1"),
    "gamma with DPO": ({"objective": "DPO", "gamma": 0.5}, "training.gamma is 0.5"),
    "gamma with WRPO-IPO": ({"objective": "WRPO-IPO", "gamma": 0.5}, "training.gamma is 0.5"),
    "alpha with DPO": ({"objective": "DPO", "alpha": {"max": 0.5}}, "training.alpha is 'Linear to 0.5'"),
    "alpha with IPO": (
        {"objective": "IPO", "alpha": {"schedule": "Constant"}},
        "training.alpha is 'Constant to 0.1'",
    ),
    "alpha with SimPO, with the value of its default": (
        {"objective": "SimPO", "alpha": {}},
        "training.alpha is 'Linear to 0.1'",
    ),
    "gamma with DPO, with the value of its default": ({"objective": "DPO", "gamma": 0.0}, "training.gamma is 0.0"),
    "tau with WRPO-DPO": ({"tau": 0.5}, "training.tau is 0.5"),
    "beta with IPO": ({"objective": "IPO", "beta": 0.5}, "training.beta is 0.5"),
    "length normalisation with SimPO": (
        {"objective": "WRPO-SimPO", "length_normalized": True},
        "training.lengthNormalized is True",
    ),
    "IPO's mean with DPO": ({"objective": "DPO", "ipo_mean": True}, "training.ipoMean is True"),
}


@pytest.mark.parametrize(("settings", "message"), NO_EFFECT.values(), ids=NO_EFFECT.keys())
def test_a_setting_without_effect_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preference_objective(params(**settings))
    assert str(caught.value).startswith(f"{message}: it has no effect with objective")
    assert caught.value.exit_code == 78


def test_the_whole_text_of_a_setting_without_effect() -> None:
    with pytest.raises(ConfigError) as caught:
        preference_objective(params(objective="DPO", gamma=0.5))
    assert str(caught.value) == (
        "training.gamma is 0.5: it has no effect with objective DPO: only the SimPO forms have a target margin"
    )
    assert caught.value.hint == "Remove training.gamma or choose another training.objective."


def test_sft_only_is_not_a_preference_objective() -> None:
    with pytest.raises(ConfigError, match=r"training.objective is 'SFTOnly': the train stage needs"):
        preference_objective(params(objective="SFTOnly"))


GENERATOR = torch.Generator().manual_seed(3)


def _random(columns: int) -> PerResponse:
    return PerResponse(
        preferred=-10 * torch.rand(4, columns, dtype=torch.float64, generator=GENERATOR) - 1,
        rejected=-10 * torch.rand(4, dtype=torch.float64, generator=GENERATOR) - 1,
    )


POLICY, REFERENCE = _random(2), _random(2)
LENGTHS = PerResponse(preferred=-_random(2).preferred, rejected=-_random(2).rejected)


def _column(values: PerResponse) -> PerResponse:
    return PerResponse(preferred=values.preferred[:, :1], rejected=values.rejected)


ONE = (_column(POLICY), _column(REFERENCE), _column(LENGTHS))
TWO = (POLICY, REFERENCE, LENGTHS)
RATIOS = (POLICY.preferred - REFERENCE.preferred, POLICY.rejected - REFERENCE.rejected)
MEAN_RATIOS = (RATIOS[0] / LENGTHS.preferred, RATIOS[1] / LENGTHS.rejected)
MEAN_LOGPS = (POLICY.preferred / LENGTHS.preferred, POLICY.rejected / LENGTHS.rejected)


def weighted(values: tuple[Tensor, Tensor], alpha: float = 0.2) -> Tensor:
    """a * v(y_ws) + (1 - a) * v(y_wt) - v(y_l)."""
    preferred, rejected = values
    return alpha * preferred[:, 0] + (1 - alpha) * preferred[:, 1] - rejected


def first(values: tuple[Tensor, Tensor]) -> Tensor:
    """v(y_w) - v(y_l) of the first column."""
    return values[0][:, 0] - values[1]


def minus_log_sigmoid(logits: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-logits))


OBJECTIVES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "WRPO-DPO": (
        {"beta": 0.3, "label_smoothing": 0.1},
        TWO,
        0.9 * minus_log_sigmoid(0.3 * weighted(RATIOS)) + 0.1 * minus_log_sigmoid(-0.3 * weighted(RATIOS)),
    ),
    "WRPO-DPO, length-normalised": (
        {"beta": 3, "length_normalized": True},
        TWO,
        minus_log_sigmoid(3 * weighted(MEAN_RATIOS)),
    ),
    "WRPO-SimPO": ({"beta": 2, "gamma": 0.6}, TWO, minus_log_sigmoid(2 * weighted(MEAN_LOGPS) - 0.6)),
    "WRPO-IPO": ({"tau": 0.5}, TWO, (weighted(RATIOS) - 1) ** 2),
    "WRPO-IPO, mean": ({"ipo_mean": True}, TWO, (weighted(MEAN_RATIOS) - 5) ** 2),
    "DPO": ({"beta": 0.3}, ONE, minus_log_sigmoid(0.3 * first(RATIOS))),
    "SimPO": ({"beta": 2, "gamma": 0.6}, ONE, minus_log_sigmoid(2 * first(MEAN_LOGPS) - 0.6)),
    "IPO": ({"tau": 0.5}, ONE, (first(RATIOS) - 1) ** 2),
    "WRPO-DPO with NLL": (
        {"nll_weight": 0.5},
        TWO,
        minus_log_sigmoid(0.01 * weighted(RATIOS)) - 0.5 * MEAN_LOGPS[0][:, 0],
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_configuration_trains_with_its_own_loss(name: str) -> None:
    settings, (policy, reference, lengths), expected = OBJECTIVES[name]
    objective = preference_objective(params(objective=re.split(",| with", name)[0], **settings))
    given = reference if objective.needs_reference else None
    terms = objective.terms(policy, given, lengths, weights=objective.weights(0.2))
    torch.testing.assert_close(terms.loss, expected, rtol=0, atol=1e-12)
    assert len(objective.preferred) == policy.preferred.shape[1]


def test_simpo_needs_no_reference_and_the_others_do() -> None:
    needs = {
        name: preference_objective(params(objective=name)).needs_reference
        for name in ("WRPO-DPO", "WRPO-SimPO", "WRPO-IPO", "DPO", "SimPO", "IPO")
    }
    assert [name for name, needed in needs.items() if not needed] == ["WRPO-SimPO", "SimPO"]


def test_an_objective_without_the_reference_it_needs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^IPO needs the reference's log-probabilities$"):
        preference_objective(params(objective="IPO")).rewards(ONE[0], None, ONE[2])


def test_what_is_logged_are_the_rewards_and_the_margin_of_the_loss_without_gradients() -> None:
    objective = preference_objective(params(objective="WRPO-DPO", beta=0.3))
    policy = PerResponse(preferred=POLICY.preferred.clone().requires_grad_(), rejected=POLICY.rejected)
    terms = objective.terms(policy, REFERENCE, LENGTHS, weights=objective.weights(0.2))
    preferred = 0.3 * (POLICY.preferred - REFERENCE.preferred)
    rejected = 0.3 * (POLICY.rejected - REFERENCE.rejected)
    torch.testing.assert_close(terms.rewards.preferred, preferred, rtol=0, atol=1e-12)
    torch.testing.assert_close(terms.rewards.rejected, rejected, rtol=0, atol=1e-12)
    margin = 0.2 * preferred[:, 0] + 0.8 * preferred[:, 1] - rejected
    torch.testing.assert_close(terms.margin, margin, rtol=0, atol=1e-12)
    assert terms.loss.requires_grad
    assert not terms.margin.requires_grad
    assert not terms.rewards.preferred.requires_grad
