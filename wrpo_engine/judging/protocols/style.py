"""Arena-Hard's style control: a Bradley-Terry fit with the lengths and Markdown of the two answers as features.

With n the length of an answer, h the number of its headers, lists or bold texts, and m and b for model and baseline:

    2024   (n_b - n_m) / (n_b + n_m + 1) and (h_b - h_m) / (h_b + h_m + 1), with scikit-learn's default penalty
    2025   (n_m - n_b) / (n_m + n_b) and (d_m - d_b) / (d_m + d_b + 1) with d = h / (n + 1), without a penalty

The formulas are those of lmarena/arena-hard-auto (Apache-2.0): its version of October 2024, and show_result.py of v2.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wrpo_engine.bundles.markdown import markdown_counts
from wrpo_engine.comparison.length_control import LengthControl as Fit
from wrpo_engine.comparison.statistics import Floats

_BASE = 10.0
_SCALE = 400.0
_ALIKE = 1e-9
"""Deviation of a feature that differs only by rounding."""
_SEPARATED = 20.0
"""Coefficient of a feature of deviation 1 that has no finite value: its odds would be 10^8 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StyledBattle:
    """One game of a model against the baseline; a decisive one is there three times."""

    model: str
    outcome: float
    """1 if the model wins, 0.5 for a tie, else 0."""
    model_style: tuple[float, float, float, float]
    """Length, headers, lists and bold texts of the model's answer."""
    baseline_style: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleControl:
    """Result of the fit."""

    ratings: Mapping[str, float]
    """Model -> rating on the scale of 400 above the baseline's."""
    coefficients: tuple[float, ...]
    """Of the features, in their order."""
    mean_style_rating: float
    """Part of every rating that is due to the mean difference of style: the original centres its features."""

    def win_rate(self, model: str) -> float:
        """Return the chance that the model beats the baseline, in per cent, as the original prints it.

        It is the chance at the mean style of all battles. For one model alone that is its own mean style, so nothing
        is controlled: use `equal_style_win_rate`.
        """
        return _chance(self.ratings[model])

    def equal_style_win_rate(self, model: str) -> float:
        """Return the chance that the model beats the baseline where both answers have the same style, in per cent."""
        return _chance(self.ratings[model] - self.mean_style_rating)


def _chance(rating: float) -> float:
    return 50 * (1 + math.tanh(rating * math.log(_BASE) / (2 * _SCALE)))


def style_of(text: str, length: int) -> tuple[float, float, float, float]:
    """Return the features of an answer."""
    headers, lists, bold = (float(sum(group.values())) for group in markdown_counts(text).values())
    return float(length), headers, lists, bold


def style_control(battles: Sequence[StyledBattle]) -> StyleControl:
    """Return ratings with style as a feature, as in 2024: scikit-learn's logistic regression with its default penalty.

    The penalty shrinks ratings towards the baseline's, so a model with few battles looks closer to it than it is.
    """
    from sklearn.linear_model import LogisticRegression

    models = sorted({battle.model for battle in battles})
    relative = _relative_style(battles)
    mean, deviation = relative.mean(axis=0), relative.std(axis=0)
    spread = np.where(deviation > _ALIKE, deviation, 1.0)
    rows = np.concatenate([_players(battles, models), (relative - mean) / spread], axis=1)
    fitted = LogisticRegression(fit_intercept=False).fit(np.concatenate([rows, rows]), _labels(battles))
    strengths, coefficients = np.split(fitted.coef_[0], [len(models) + 1])
    return StyleControl(
        ratings={model: float(_SCALE * (strengths[place] - strengths[-1])) for place, model in enumerate(models)},
        coefficients=tuple(float(value) for value in coefficients),
        mean_style_rating=-float(_SCALE * (coefficients @ (mean / spread)) / np.log(_BASE)),
    )


def style_fit(styles: Floats, outcomes: Floats, battles: Floats) -> Fit | None:
    """Return the fit of 2025 with one row a question, for the score at equal style; None if there is none.

    styles: [questions, features] of `density_style`; outcomes: mean over the question's battles; battles: their number.
    There is none if the style alone decides the battles: no finite coefficients describe that.
    """
    deviation = styles.std(axis=0)
    spread = np.where(deviation > _ALIKE, deviation, 1.0)
    fit = Fit(
        features=np.concatenate([styles / spread, np.ones((len(styles), 1))], axis=1),
        outcomes=outcomes,
        weights=battles,
        controlled=styles.shape[1],
    )
    return fit if float(np.abs(fit.coefficients()).max()) < _SEPARATED else None


def density_style(model: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return the features of 2025 of a battle."""
    total = model[0] + baseline[0]
    features = [(model[0] - baseline[0]) / total if total else 0.0]
    for own, other in zip(model[1:], baseline[1:], strict=True):
        dense, thin = own / (model[0] + 1), other / (baseline[0] + 1)
        features.append((dense - thin) / (dense + thin + 1))
    return features


def _players(battles: Sequence[StyledBattle], models: Sequence[str]) -> NDArray[np.float64]:
    """Return who plays in each battle; the baseline is the last column."""
    players = np.zeros((len(battles), len(models) + 1))
    players[np.arange(len(battles)), [models.index(battle.model) for battle in battles]] = -np.log(_BASE)
    players[:, -1] = np.log(_BASE)
    return players


def _relative_style(battles: Sequence[StyledBattle]) -> NDArray[np.float64]:
    """Return the features of each battle: the baseline's style minus the model's, divided by their sum and one."""
    baseline = np.array([battle.baseline_style for battle in battles], dtype=np.float64)
    model = np.array([battle.model_style for battle in battles], dtype=np.float64)
    relative: NDArray[np.float64] = (baseline - model) / (baseline + model + 1)
    return relative


def _labels(battles: Sequence[StyledBattle]) -> NDArray[np.float64]:
    """Return 1 where the baseline wins; a tie is a win of each side."""
    once = [float(battle.outcome <= 0.5) for battle in battles]
    again = [float(battle.outcome == 0) for battle in battles]
    return np.array([*once, *again])
