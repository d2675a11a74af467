"""Which objective a configuration asks for, and whether every setting in it can take effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from wrpo_engine.config import AlphaParams, Objective, TrainParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.effects import chosen, field_name
from wrpo_engine.training.losses import (
    PerResponse,
    dpo_rewards,
    ipo_rewards,
    logistic_loss,
    nll,
    scaled,
    simpo_rewards,
    squared_loss,
    weighted_margin,
    wrpo_weights,
)

_WITH_SOURCE = frozenset({Objective.WRPO_DPO, Objective.WRPO_SIMPO, Objective.WRPO_IPO})
_DPO_FORMS = frozenset({Objective.WRPO_DPO, Objective.DPO})
_SIMPO_FORMS = frozenset({Objective.WRPO_SIMPO, Objective.SIMPO})
_IPO_FORMS = frozenset({Objective.WRPO_IPO, Objective.IPO})


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveTerms:
    """What one micro-batch yields, per row."""

    loss: Tensor
    """[B], with the NLL term if there is one."""
    rewards: PerResponse
    margin: Tensor
    """[B], the weighted margin that the loss is a function of."""


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """One of the six objectives with its settings; the only caller of the loss functions in training."""

    params: TrainParams

    @property
    def has_source(self) -> bool:
        """True if rows hold y_ws beside y_wt."""
        return self.params.objective in _WITH_SOURCE

    @property
    def needs_reference(self) -> bool:
        return self.params.objective not in _SIMPO_FORMS

    @property
    def num_preferred(self) -> int:
        return 2 if self.has_source else 1

    def weights(self, alpha: float) -> Sequence[float]:
        return wrpo_weights(alpha) if self.has_source else (1.0,)

    def rewards(self, policy: PerResponse, reference: PerResponse | None, lengths: PerResponse) -> PerResponse:
        params = self.params
        if params.objective in _SIMPO_FORMS:
            return simpo_rewards(policy, lengths, beta=params.beta)
        if reference is None:
            raise ValueError(f"{params.objective} needs the reference's log-probabilities")
        if params.objective in _IPO_FORMS:
            return ipo_rewards(policy, reference, lengths=lengths if params.ipo_mean else None)
        return dpo_rewards(policy, reference, beta=params.beta, lengths=lengths if params.length_normalized else None)

    def __call__(
        self, policy: PerResponse, reference: PerResponse | None, lengths: PerResponse, *, alpha: float
    ) -> ObjectiveTerms:
        """Return loss, rewards and margin of every row."""
        params = self.params
        rewards = self.rewards(policy, reference, lengths)
        margin = weighted_margin(rewards, self.weights(alpha))
        if params.objective in _IPO_FORMS:
            loss = squared_loss(margin, tau=params.tau)
        else:
            loss = logistic_loss(margin, gamma=params.gamma, label_smoothing=params.label_smoothing)
        if params.nll_weight:
            loss = loss + params.nll_weight * nll(policy.preferred[:, 0], lengths.preferred[:, 0])
        detached = scaled(PerResponse(preferred=rewards.preferred.detach(), rejected=rewards.rejected.detach()), 1.0)
        return ObjectiveTerms(loss=loss, rewards=detached, margin=margin.detach())


def preference_objective(params: TrainParams) -> PreferenceObjective:
    """Check that every setting can take effect and return the objective."""
    if params.objective is Objective.SFT_ONLY:
        raise ConfigError(
            "training.objective",
            params.objective.value,
            "the train stage needs a preference objective",
            "Leave the train stage out for SFTOnly, or choose WRPO-DPO.",
        )
    objective = params.objective
    given = chosen(params)
    applies = {
        "alpha": (objective in _WITH_SOURCE, "it weighs the source response, which only the WRPO objectives have"),
        "beta": (objective not in _IPO_FORMS, "the IPO forms have no beta; their strength is tau"),
        "gamma": (objective in _SIMPO_FORMS, "only the SimPO forms have a target margin"),
        "tau": (objective in _IPO_FORMS, "only the IPO forms have it"),
        "label_smoothing": (objective in _DPO_FORMS, "only the DPO forms define it"),
        "length_normalized": (objective in _DPO_FORMS, "it belongs to the DPO forms; SimPO is always normalised"),
        "ipo_mean": (objective in _IPO_FORMS, "it chooses how IPO reads its log-ratios"),
    }
    for name, (takes_effect, reason) in applies.items():
        value = getattr(params, name)
        if takes_effect or name not in given:
            continue
        field = field_name(name)
        shown = f"{value.schedule} to {value.max}" if isinstance(value, AlphaParams) else value
        raise ConfigError(
            field,
            shown,
            f"it has no effect with objective {objective.value}: {reason}",
            f"Remove {field} or choose another training.objective.",
        )
    return PreferenceObjective(params)
