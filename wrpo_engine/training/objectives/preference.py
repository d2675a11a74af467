"""Preference objectives: the mathematics of each form, the configured objective, refused settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from wrpo_engine.config import AlphaParams, TrainParams
from wrpo_engine.contract.objectives import Form, Setting, no_effect_reason
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.objectives.losses import (
    PerResponse,
    log_ratios,
    logistic_loss,
    nll,
    scaled,
    squared_loss,
    weighted_margin,
    wrpo_weights,
)
from wrpo_engine.training.objectives.settings import explicitly_set, field_name

SOURCE, TARGET, CHOSEN, REJECTED = "source_chosen", "target_chosen", "chosen", "rejected"
"""Kinds of responses, as in the names of metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The logged values of one kind of response: means over the rows of a step."""

    reward: float
    logps: float
    """Sum over the tokens of a response."""
    length: float
    """Tokens of a response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormMath:
    """The mathematics of a form. `values` are log-ratios to the reference, or log-probabilities if it needs none."""

    reward: Callable[[PerResponse, PerResponse, TrainParams], PerResponse]
    """(values, lengths) -> rewards."""
    loss: Callable[[Tensor, TrainParams], Tensor]
    """margin [B] -> loss [B]."""
    inverse: Callable[[Reading, TrainParams], float]
    """Inverse of the reward: the mean of `values` per token in nats, for the divergence alarm."""


def _dpo_reward(values: PerResponse, lengths: PerResponse, params: TrainParams) -> PerResponse:
    """Return beta * r(y), or beta / |y| * r(y) when length-normalised."""
    return scaled(values, params.beta, lengths if params.length_normalized else None)


def _dpo_inverse(reading: Reading, params: TrainParams) -> float:
    value = reading.reward / params.beta
    return value if params.length_normalized else value / reading.length


def _ipo_reward(values: PerResponse, lengths: PerResponse, params: TrainParams) -> PerResponse:
    """Return r(y), or its mean per token as some libraries implement IPO. The paper writes sums."""
    return scaled(values, 1.0, lengths if params.ipo_mean else None)


def _ipo_inverse(reading: Reading, params: TrainParams) -> float:
    return reading.reward if params.ipo_mean else reading.reward / reading.length


FORMS: Mapping[Form, FormMath] = {
    Form.DPO: FormMath(
        reward=_dpo_reward,
        loss=lambda margin, params: logistic_loss(margin, label_smoothing=params.label_smoothing),
        inverse=_dpo_inverse,
    ),
    Form.SIMPO: FormMath(
        reward=lambda values, lengths, params: scaled(values, params.beta, lengths),
        loss=lambda margin, params: logistic_loss(margin, gamma=params.gamma),
        # The metrics contain the log-probability itself. The reward is the mean of each row's own mean.
        inverse=lambda reading, _: reading.logps / reading.length,
    ),
    Form.IPO: FormMath(
        reward=_ipo_reward,
        loss=lambda margin, params: squared_loss(margin, tau=params.tau),
        inverse=_ipo_inverse,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveTerms:
    """Loss, rewards and margin of one micro-batch, per row."""

    loss: Tensor
    """[B], with the NLL term if there is one; the only part with a graph."""
    rewards: PerResponse
    margin: Tensor
    """[B], the weighted margin, which is the argument of the form's loss."""


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """An objective with its settings; its form defines the mathematics."""

    params: TrainParams

    @property
    def form(self) -> Form:
        """The form of the objective."""
        form = self.params.objective.form
        assert form is not None, "preference_objective refuses objectives without a preference stage"
        return form

    @property
    def has_source(self) -> bool:
        """True if rows have y_ws in addition to y_wt."""
        return self.params.objective.has_source

    @property
    def needs_reference(self) -> bool:
        """True if the reward compares with the reference."""
        return self.form.needs_reference

    @property
    def preferred(self) -> tuple[str, ...]:
        """The kinds of preferred responses, in the order of their columns."""
        return (SOURCE, TARGET) if self.has_source else (CHOSEN,)

    def weights(self, alpha: float) -> Sequence[float]:
        """Return the K weights of the preferred responses, with sum 1."""
        return wrpo_weights(alpha) if self.has_source else (1.0,)

    def rewards(self, policy: PerResponse, reference: PerResponse | None, lengths: PerResponse) -> PerResponse:
        """Return the reward of every response; raise ValueError if the form needs a reference and there is none."""
        values = policy
        if self.needs_reference:
            if reference is None:
                raise ValueError(f"{self.params.objective} needs the reference's log-probabilities")
            values = log_ratios(policy, reference)
        return FORMS[self.form].reward(values, lengths, self.params)

    def terms(
        self,
        policy: PerResponse,
        reference: PerResponse | None,
        lengths: PerResponse,
        *,
        weights: Sequence[float],
    ) -> ObjectiveTerms:
        """Return loss, rewards and margin of every row; `weights` are those of the K preferred responses."""
        rewards = self.rewards(policy, reference, lengths)
        margin = weighted_margin(rewards, weights)
        loss = FORMS[self.form].loss(margin, self.params)
        if self.params.nll_weight:
            loss = loss + self.params.nll_weight * nll(policy.preferred[:, 0], lengths.preferred[:, 0])
        detached = PerResponse(preferred=rewards.preferred.detach(), rejected=rewards.rejected.detach())
        return ObjectiveTerms(loss=loss, rewards=detached, margin=margin.detach())

    def per_token(self, reading: Reading) -> float:
        """Return the mean log-ratio per token in nats, or the mean log-probability if the form needs no reference."""
        return FORMS[self.form].inverse(reading, self.params)


def preference_objective(params: TrainParams) -> PreferenceObjective:
    """Return the objective; raise ConfigError if it has no preference stage or an explicit setting has no effect."""
    objective = params.objective
    if objective.form is None:
        raise ConfigError(
            "training.objective",
            objective.value,
            "the train stage needs a preference objective",
            f"Leave the train stage out for {objective.value}, or choose WRPO-DPO.",
        )
    given = explicitly_set(params)
    for setting in Setting:
        if setting in given and setting not in objective.settings:
            raise _without_effect(params, setting)
    return PreferenceObjective(params)


def _without_effect(params: TrainParams, setting: Setting) -> ConfigError:
    value = getattr(params, setting)
    field = field_name(setting)
    return ConfigError(
        field,
        f"{value.schedule} to {value.max}" if isinstance(value, AlphaParams) else value,
        f"it has no effect with objective {params.objective.value}: {no_effect_reason(setting)}",
        f"Remove {field} or choose another training.objective.",
    )


def _require_complete() -> None:
    """Raise TypeError unless every form is in FORMS and every setting is a field with its neutral value as default."""
    if missing := [form.value for form in Form if form not in FORMS]:
        raise TypeError(f"{missing} have no reward, loss and inverse; add them to FORMS")
    defaults = TrainParams.model_validate({"model": {"name": "/"}}).model_dump(mode="json")
    for setting in Setting:
        if setting not in defaults or defaults[setting] != setting.neutral:
            raise TypeError(f"TrainParams.{setting} must exist and have the default {setting.neutral}")


_require_complete()
