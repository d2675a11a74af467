"""Settings that cannot take effect are errors, and each objective calls its own loss."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from wrpo_engine.config import ModelRef, TrainParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.losses import (
    PerResponse,
    dpo_loss,
    ipo_loss,
    nll,
    simpo_loss,
    wrpo_dpo_loss,
    wrpo_ipo_loss,
    wrpo_simpo_loss,
)
from wrpo_engine.training.objective import preference_objective


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
OBJECTIVES = {
    "WRPO-DPO": (
        {"beta": 0.3, "label_smoothing": 0.1},
        TWO,
        wrpo_dpo_loss(POLICY, REFERENCE, alpha=0.2, beta=0.3, label_smoothing=0.1),
    ),
    "WRPO-DPO, length-normalised": (
        {"beta": 3, "length_normalized": True},
        TWO,
        wrpo_dpo_loss(POLICY, REFERENCE, alpha=0.2, beta=3, lengths=LENGTHS),
    ),
    "WRPO-SimPO": ({"beta": 2, "gamma": 0.6}, TWO, wrpo_simpo_loss(POLICY, LENGTHS, alpha=0.2, beta=2, gamma=0.6)),
    "WRPO-IPO": ({"tau": 0.5}, TWO, wrpo_ipo_loss(POLICY, REFERENCE, alpha=0.2, tau=0.5)),
    "WRPO-IPO, mean": ({"ipo_mean": True}, TWO, wrpo_ipo_loss(POLICY, REFERENCE, alpha=0.2, tau=0.1, lengths=LENGTHS)),
    "DPO": ({"beta": 0.3}, ONE, dpo_loss(ONE[0], ONE[1], beta=0.3)),
    "SimPO": ({"beta": 2, "gamma": 0.6}, ONE, simpo_loss(ONE[0], ONE[2], beta=2, gamma=0.6)),
    "IPO": ({"tau": 0.5}, ONE, ipo_loss(ONE[0], ONE[1], tau=0.5)),
    "WRPO-DPO with NLL": (
        {"nll_weight": 0.5},
        TWO,
        wrpo_dpo_loss(POLICY, REFERENCE, alpha=0.2, beta=0.01)
        + 0.5 * nll(POLICY.preferred[:, 0], LENGTHS.preferred[:, 0]),
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_configuration_trains_with_its_own_loss(name: str) -> None:
    settings, (policy, reference, lengths), expected = OBJECTIVES[name]
    objective = preference_objective(params(objective=re.split(",| with", name)[0], **settings))
    given = reference if objective.needs_reference else None
    terms = objective(policy, given, lengths, alpha=0.2)
    torch.testing.assert_close(terms.loss, expected, rtol=0, atol=1e-12)
    assert objective.num_preferred == policy.preferred.shape[1]


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
    terms = objective(policy, REFERENCE, LENGTHS, alpha=0.2)
    preferred = 0.3 * (POLICY.preferred - REFERENCE.preferred)
    rejected = 0.3 * (POLICY.rejected - REFERENCE.rejected)
    torch.testing.assert_close(terms.rewards.preferred, preferred, rtol=0, atol=1e-12)
    torch.testing.assert_close(terms.rewards.rejected, rejected, rtol=0, atol=1e-12)
    margin = 0.2 * preferred[:, 0] + 0.8 * preferred[:, 1] - rejected
    torch.testing.assert_close(terms.margin, margin, rtol=0, atol=1e-12)
    assert terms.loss.requires_grad
    assert not terms.margin.requires_grad
    assert not terms.rewards.preferred.requires_grad
