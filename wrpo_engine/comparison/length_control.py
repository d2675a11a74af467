"""Length- and style-controlled win rates in resamples: logistic regression by Newton's method, without a penalty. Pure.

The regression has one row an item, with the outcome as a continuous label, and the rows of a regulariser, which are the
same in every resample. The score is the mean prediction over the items with the controlled columns, the length's or
those of the style, set to 0. The items are those with a valid verdict. AlpacaEval's own value, which
`wrpo_engine.judging.protocols.length_control` computes, is the mean over all items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from wrpo_engine.comparison.statistics import RESAMPLES, Floats, resample_counts

_CONVERGED = 1e-4
"""Largest change of a coefficient at which Newton's method ends; its error then is about the square of it."""
_STEPS = 30
_LONGEST = 2.0
"""Longest step of a coefficient: outcomes that separate have no maximum to jump to."""
_RIDGE = 1e-9
"""Keeps the Hessian regular where the outcomes separate, e.g. if a system wins every item."""
_LIMIT = 30.0
"""Largest logit; its probability differs from 1 by less than the rounding of a mean."""
_BLOCK = 50
"""Resamples of one block: its arrays fit the processor's cache."""
_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of the regression that do not depend on the system."""

    features: Floats
    """[rows, columns]."""
    outcomes: Floats
    """[rows], from 0 to 1."""
    weights: Floats
    """[rows]; an item has weight 1."""
    products: Floats = field(init=False, repr=False)
    """[rows, columns * columns], weighted."""

    def __post_init__(self) -> None:
        """Compute the weighted products of columns, which every Hessian needs."""
        object.__setattr__(self, "products", self.weights[:, None] * _outer(self.features))


@dataclass(frozen=True, kw_only=True)
class LengthControl:
    """Length control of one system: what its regression is made of."""

    features: Floats
    """[items, columns]. The first `controlled` columns are 0 in the predictions."""
    outcomes: Floats
    """[items], from 0 to 1."""
    regulariser: Rows | None = None
    weights: Floats | None = None
    """[items]: how often each item counts. None: once."""
    controlled: int = 1
    """Columns that are controlled for: the length's, or those of the style."""
    _products: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compute the products of columns, which every Hessian needs."""
        object.__setattr__(self, "_products", _outer(self.features))

    def score(self) -> float:
        """Return the length-controlled share of wins, from 0 to 1."""
        return float(self._scores(self._once(), self.coefficients()[None])[0])

    def coefficients(self) -> Floats:
        """Return the coefficient of each column, [columns]. Those of outcomes that separate are large and arbitrary."""
        found: Floats = self._fitted(self._once(), self._zeros())[0]
        return found

    def resampled(self, *, seed: int, resamples: int = RESAMPLES) -> Floats:
        """Return the score in each resample of items, [resamples]; the items are those of `statistics.bootstrap`."""
        start = self.coefficients()[None]
        narrow = self._narrow()

        def of_block(counts: Floats) -> Floats:
            drawn = _single(counts if self.weights is None else counts * self.weights)
            return narrow._scores(drawn, narrow._fitted(drawn, start))  # noqa: SLF001 (its own class)

        with ThreadPoolExecutor(_THREADS) as pool:
            blocks = _blocks(len(self.outcomes), seed=seed, resamples=resamples)
            return np.concatenate(list(pool.map(of_block, blocks)))

    def _narrow(self) -> LengthControl:
        """Return the same in single precision, which takes half the time; its error is far below that of resampling."""
        fixed = self.regulariser
        return LengthControl(
            features=_single(self.features),
            outcomes=_single(self.outcomes),
            regulariser=None
            if fixed is None
            else Rows(
                features=_single(fixed.features), outcomes=_single(fixed.outcomes), weights=_single(fixed.weights)
            ),
            controlled=self.controlled,
        )

    def _once(self) -> Floats:
        """Return how often each item counts without resampling, [1, items]."""
        return np.ones((1, len(self.outcomes))) if self.weights is None else self.weights[None]

    def _zeros(self) -> Floats:
        return np.zeros((1, self.features.shape[1]))

    def _scores(self, counts: Floats, coefficients: Floats) -> Floats:
        at_zero = self.features.copy()
        at_zero[:, : self.controlled] = 0
        made = (counts * _chances(coefficients, at_zero)).sum(axis=1, dtype=np.float64)
        shares: Floats = made / counts.sum(axis=1, dtype=np.float64)
        return shares

    def _fitted(self, counts: Floats, coefficients: Floats) -> Floats:
        """Return the coefficients of each resample, [resamples, columns]; they start from one row for all."""
        for _ in range(_STEPS):
            gradient, hessian = self._derivatives(counts, coefficients)
            step = np.linalg.solve(hessian, np.asarray(gradient, dtype=np.float64)[..., None])[..., 0]
            coefficients = coefficients + np.clip(step, -_LONGEST, _LONGEST)
            if float(np.abs(step).max()) < _CONVERGED:
                break
        return coefficients

    def _derivatives(self, counts: Floats, coefficients: Floats) -> tuple[Floats, Floats]:
        """Return the gradient, [resamples, columns], and the negative Hessian, [resamples, columns, columns].

        The coefficients are those of each resample, or one row that all share, which needs one prediction an item.
        """
        own, columns = _chances(coefficients, self.features), self.features.shape[1]
        if len(own) == 1:
            gradient = counts @ ((self.outcomes - own[0])[:, None] * self.features)
            hessian = counts @ ((own[0] * (1 - own[0]))[:, None] * self._products)
        else:
            gradient = (counts * (self.outcomes - own)) @ self.features
            own -= own * own
            hessian = (counts * own) @ self._products
        fixed = self.regulariser
        if fixed is not None:
            chance = _chances(coefficients, fixed.features)
            gradient = gradient + (fixed.outcomes - chance) @ (fixed.weights[:, None] * fixed.features)
            chance -= chance * chance
            hessian = hessian + chance @ fixed.products
        return gradient, hessian.reshape(-1, columns, columns) + _RIDGE * np.eye(columns)


def rows_to_json(rows: Rows) -> dict[str, Any]:
    """Return what `rows_of` reads."""
    return {name: getattr(rows, name).tolist() for name in ("features", "outcomes", "weights")}


def rows_of(content: Mapping[str, Any]) -> Rows:
    """Return the rows that `rows_to_json` wrote."""
    return Rows(**{name: _table(content[name]) for name in ("features", "outcomes", "weights")})


def details_of(
    form: str, metric: str, features: Mapping[str, Sequence[float]], regulariser: Rows | None = None
) -> dict[str, Any]:
    """Return the entry `length_control` of the details in benchmark.json.

    `form` is the name in tables, e.g. LC. `metric` names the value among the metrics, in per cent. `features`
    has the columns of each valid item, the length's first.
    """
    return {
        "form": form,
        "metric": metric,
        "features": {item: [float(value) for value in values] for item, values in features.items()},
        "regulariser": None if regulariser is None else rows_to_json(regulariser),
    }


def _single(values: Floats) -> Floats:
    return cast("Floats", values.astype(np.float32))


def _table(values: object) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _blocks(items: int, *, seed: int, resamples: int) -> Iterator[Floats]:
    for counts in resample_counts(items, seed=seed, resamples=resamples):
        for start in range(0, len(counts), _BLOCK):
            yield counts[start : start + _BLOCK]


def _outer(features: Floats) -> Floats:
    """Return the products of the columns of each row, [rows, columns * columns]."""
    made: Floats = (features[:, :, None] * features[:, None, :]).reshape(len(features), -1)
    return made


def _chances(coefficients: Floats, features: Floats) -> Floats:
    """Return the predictions, [resamples, rows], in the precision of the features."""
    logits = np.asarray(coefficients, dtype=features.dtype) @ features.T
    np.clip(logits, -_LIMIT, _LIMIT, out=logits)
    np.negative(logits, out=logits)
    np.exp(logits, out=logits)
    logits += 1
    chances: Floats = np.reciprocal(logits, out=logits)
    return chances
