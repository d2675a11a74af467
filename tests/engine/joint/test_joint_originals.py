"""Random cases against EVA's and PackLLM's algorithms, written here as plainly as their authors describe them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wrpo_engine.joint.agreement import agreeing, ensemble, likeliest
from wrpo_engine.joint.bridge import bridge, project, similarities, unit
from wrpo_engine.joint.weighting import loss_of, optimal_weights, read_of, similarity_weights

Array = np.ndarray[Any, Any]
SEEDS = range(20)


def whitening(anchors: Array) -> Array:
    _, s, v = np.linalg.svd(anchors, full_matrices=False)
    return np.asarray(v.T @ np.diag(1 / s) @ v)


def rows_of_length_one(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def original_projection(x: Array, z: Array, dictionary: list[tuple[int, int]]) -> Array:
    """Return the cosines of VecMap's supervised form: whitening, orthogonal map, re-weighting, de-whitening."""
    x, z = (rows_of_length_one(rows) for rows in (x, z))
    x, z = (rows_of_length_one(rows - rows.mean(axis=0)) for rows in (x, z))
    left, right = [one for one, _ in dictionary], [other for _, other in dictionary]
    white_x, white_z = whitening(x[left]), whitening(z[right])
    u, s, vt = np.linalg.svd((x[left] @ white_x).T @ (z[right] @ white_z))
    x, z = x @ white_x @ u @ np.diag(s**0.5), z @ white_z @ vt.T @ np.diag(s**0.5)
    x = x @ u.T @ np.linalg.inv(white_x) @ u
    z = z @ vt @ np.linalg.inv(white_z) @ vt.T
    return np.asarray(rows_of_length_one(x) @ rows_of_length_one(z).T)


@pytest.mark.parametrize("seed", SEEDS)
def test_similarities_and_neighbours_are_evas(seed: int) -> None:
    generator = np.random.default_rng(seed)
    main, aux = generator.standard_normal((30, 5)), generator.standard_normal((25, 5))
    dictionary = [(int(one), int(other)) for one, other in zip(
        generator.permutation(30)[:12], generator.permutation(25)[:12], strict=True)]  # fmt: skip
    cosines = original_projection(main, aux, dictionary)
    x, z = project(main, aux, dictionary)
    np.testing.assert_allclose(unit(x) @ unit(z).T, cosines, atol=1e-9)
    csls = np.array([[2 * cosines[i, j] - cosines[:, j].max() for j in range(25)] for i in range(30)])
    np.testing.assert_allclose(similarities(unit(x), unit(z)), csls, atol=1e-9)
    table = bridge(x, z, {}, neighbours=10, threshold=0.1).to_dense().numpy()
    for token in range(25):
        nearest = sorted(range(30), key=lambda i, j=token: -csls[i, j])[:10]  # type: ignore[misc]
        kept = [i for i in nearest if csls[i, token] >= 0.1]
        values = csls[kept, token]
        if len(kept) > 5 and values.std() <= 0.01:
            kept = []
        expected = np.zeros(30)
        if kept:
            # This project divides by the sum, so that distributions stay distributions.
            expected[kept] = values / values.sum()
        np.testing.assert_allclose(table[token], expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_models_that_no_other_agrees_with_are_dropped(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((4, 9))
    probabilities = np.zeros((4, 9))
    for model, row in enumerate(logits):
        top = np.argsort(-row)[:6]
        probabilities[model, top] = np.exp(row[top]) / np.exp(row[top]).sum()
    own = likeliest(torch.tensor(logits), 6)
    np.testing.assert_allclose(own, probabilities, atol=1e-12)
    kept = [
        any(row.argmax() in np.argsort(-probabilities[other])[:k] for other in range(4) if other != model)
        for model, row in enumerate(probabilities)
    ]
    assert agreeing(own, k) == kept
    chosen = probabilities[kept] if any(kept) else probabilities
    np.testing.assert_allclose(ensemble(own, k), chosen.mean(axis=0), atol=1e-12)


def original_loss(logits: Array, ids: Array, eos: int) -> float:
    """Return the mean cross-entropy of the tokens that follow another one and are not the end of the text."""
    losses = [
        np.log(np.exp(row).sum()) - row[token]
        for row, token in zip(logits[:-1], ids[1:], strict=True)
        if token != eos
    ]  # fmt: skip
    return float(np.mean(losses))


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_of_models_are_packllms(seed: int) -> None:
    generator = np.random.default_rng(seed)
    models, eos = 4, 0
    ids = np.array([3, *generator.integers(0, 12, size=7), 5])
    logits = generator.standard_normal((models, len(ids), 12))
    losses = [original_loss(one, ids, eos) for one in logits]
    read = read_of(ids.tolist(), eos)
    given = list(torch.tensor(logits))
    assert [loss_of(one, read) for one in given] == pytest.approx(losses, abs=1e-9)
    shares = np.exp(-np.array(losses) / 0.7)
    assert similarity_weights(losses, 0.7) == pytest.approx(shares / shares.sum(), abs=1e-9)
    order = sorted(range(models), key=lambda model: losses[model])
    current, weights = logits[order[0]], [1.0]
    for model in order[1:]:
        grid = [step * 0.05 for step in range(21)]
        tried = [original_loss(share * current + (1 - share) * logits[model], ids, eos) for share in grid]
        share = grid[int(np.argmin(tried))]
        current = share * current + (1 - share) * logits[model]
        weights = [weight * share for weight in weights] + [1 - share]
    expected = dict(zip(order, weights, strict=True))
    assert optimal_weights(given, losses, read) == pytest.approx([expected[model] for model in range(models)], abs=1e-9)
