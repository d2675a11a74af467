"""AlpacaEval's length control: the win rate that a model would have with answers as long as the baseline's.

A logistic regression of the outcome on the standardised difference of lengths, the item's difficulty and a constant for
the model predicts the win rate at length difference 0.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wrpo_engine.comparison.length_control import LengthControl as Refit
from wrpo_engine.comparison.length_control import Rows

Floats: TypeAlias = NDArray[np.float64]
_FOLDS = 5
_REGULARISER_WEIGHT = 0.1
"""Of each of its rows: 0.2, divided by the two models whose judgements they are."""
_GRID = 10
_SEED = 123
_EPSILON = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One system's judged items, an element each."""

    outcome: Floats
    """Preference minus 1: 0 if the baseline wins, 1 if the model does; NaN without a verdict."""
    delta: Floats
    """Characters of the baseline's answer minus characters of the model's."""
    difficulty: Floats | None
    """Difficulty of the item; None: the form without it (`LC-minimal`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regulariser:
    """Judgements of other models, which keep the coefficient of the length from absorbing the model's strength."""

    outcome: Floats
    standardised_delta: Floats
    difficulty: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthControl:
    """Result of the regression."""

    win_rate: float
    """Per cent."""
    coefficients: tuple[float, ...]
    """Of the length, of the difficulty if it is used, and of the model; empty if nothing was fitted."""
    strength: float
    """C, the inverse strength of the penalty, that cross-validation chose."""
    spread: float
    """Standard error of the mean of the predictions, in per cent: `lc_standard_error` of the original files. It holds
    no sampling noise of the judgements, so it is no standard error of the win rate."""


@dataclass(frozen=True, slots=True)
class _Design:
    features: Floats
    outcome: Floats
    weight: Floats


def can_control(judged: Judged) -> bool:
    """Return whether there are enough verdicts for the folds of the cross-validation."""
    return int(np.isfinite(judged.outcome).sum()) >= _FOLDS


def length_control(judged: Judged, regulariser: Regulariser | None) -> LengthControl:
    """Return the length-controlled win rate by scikit-learn's L1 regression, as the original computes it.

    With a regulariser and difficulties this is `length_controlled_v1`, without both `length_controlled_minimal`.
    """
    design = _design(judged, regulariser)
    if set(design.outcome.tolist()) in ({0.0}, {1.0}):
        # The solver leaves out rows of weight 0, here all of one label, and would then return 50 %.
        rate = 100 * float(design.outcome[0])
        return LengthControl(win_rate=rate, coefficients=(), strength=0.0, spread=0.0)
    model = _fit(design)
    coefficients: Floats = np.asarray(model.coef_, dtype=np.float64).reshape(-1)
    at_zero = _features(np.zeros_like(judged.delta), judged.difficulty, 1.0)
    predictions = model.predict_proba(at_zero)[:, 1]
    spread = float(predictions.std(ddof=1) / np.sqrt(len(predictions))) if len(predictions) > 1 else 0.0
    return LengthControl(
        win_rate=100 * float(predictions.mean()),
        coefficients=tuple(float(value) for value in coefficients),
        strength=float(np.asarray(model.C_).reshape(-1)[0]),
        spread=100 * spread,
    )


def rows_by_item(judged: Judged, regulariser: Regulariser | None) -> tuple[Floats, Rows | None]:
    """Return the features of each item, valid or not, and the regulariser's rows: what refits are made of."""
    features = _features(np.tanh(standardised(judged.delta)), judged.difficulty, 1.0)
    if regulariser is None:
        return features, None
    others = _features(np.tanh(regulariser.standardised_delta), regulariser.difficulty, 0.0)
    weights = np.full(len(others), _REGULARISER_WEIGHT)
    return features, Rows(features=others, outcomes=regulariser.outcome, weights=weights)


def refit_of(judged: Judged, regulariser: Regulariser | None) -> Refit:
    """Return the regression without a penalty, for resamples; it is within about 0.1 points of the penalised one."""
    features, rows = rows_by_item(judged, regulariser)
    valid = np.isfinite(judged.outcome)
    return Refit(features=features[valid], outcomes=judged.outcome[valid], regulariser=rows)


def _design(judged: Judged, regulariser: Regulariser | None) -> _Design:
    """Return the rows of the regression: the regulariser's first, as the original orders them."""
    own = refit_of(judged, regulariser)
    weight = np.ones(len(own.outcomes))
    if (others := own.regulariser) is None:
        return _Design(own.features, own.outcomes, weight)
    return _Design(
        np.concatenate([others.features, own.features]),
        np.concatenate([others.outcomes, own.outcomes]),
        np.concatenate([others.weights, weight]),
    )


def standardised(delta: Floats) -> Floats:
    """Return differences divided by their standard deviation; zeros if they do not differ."""
    deviation = float(np.std(delta, ddof=1)) if len(delta) > 1 else 0.0
    return delta / deviation if deviation > 0 else np.zeros_like(delta)


def _features(length: Floats, difficulty: Floats | None, model: float) -> Floats:
    constant = np.full_like(length, model)
    return np.stack([length, constant] if difficulty is None else [length, difficulty, constant], axis=1)


def _fit(design: _Design) -> Any:
    """Fit the penalised regression. Each row is there twice, with label 1 and 0, weighted by its outcome."""
    import sklearn
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GroupKFold

    rows = len(design.outcome)
    labels = np.repeat([1, 0], rows)
    shares = np.concatenate([design.outcome, 1 - design.outcome])
    weights = np.concatenate([design.weight, design.weight])
    with sklearn.config_context(enable_metadata_routing=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scorer = make_scorer(_log_loss, response_method="predict_proba", greater_is_better=False)
        model = LogisticRegressionCV(
            Cs=_GRID,
            l1_ratios=(1.0,),
            solver="liblinear",
            fit_intercept=False,
            random_state=_SEED,
            use_legacy_attributes=False,
            cv=GroupKFold(_FOLDS),
            scoring=scorer.set_score_request(weights=True, shares=True),
        )
        model.set_fit_request(sample_weight=True)
        return model.fit(
            np.concatenate([design.features, design.features]),
            labels,
            sample_weight=shares * weights,
            groups=np.tile(np.arange(rows), 2),
            weights=weights,
            shares=shares,
        )


def _log_loss(truth: Any, predictions: Any, *, weights: Any, shares: Any) -> float:
    """Return the log loss of continuous labels: a row counts with its outcome under either label."""
    outcome = np.where(truth == 1, shares, 1 - shares)
    chance = np.clip(predictions, _EPSILON, 1 - _EPSILON)
    likelihood = outcome * np.log(chance) + (1 - outcome) * np.log(1 - chance)
    return -float(np.mean(likelihood * weights))
