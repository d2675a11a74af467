"""The objectives: golden values, identities and laws, of the code that the trainer calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wrpo_engine.config import TrainParams
from wrpo_engine.training.objectives.losses import PerResponse, log_ratios, logistic_loss, nll, weighted_margin
from wrpo_engine.training.objectives.preference import ObjectiveTerms, preference_objective


def _tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The DPO values come from running the authors' released loss on these inputs; IPO and SimPO from the formulas.
POLICY = PerResponse(
    preferred=_tensor([[-12, -10], [-30, -25.5], [-7.25, -9]]),
    rejected=_tensor([-11, -28, -8]),
)
REFERENCE = PerResponse(
    preferred=_tensor([[-14, -10.5], [-29, -26], [-7, -9.5]]),
    rejected=_tensor([-10, -27.5, -8.25]),
)
LENGTHS = PerResponse(
    preferred=_tensor([[8, 6], [16, 12], [5, 9]]),
    rejected=_tensor([7, 20, 4]),
)

WRPO_DPO = {
    "a quarter from the source": (0.25, [0.6037852895555947, 0.6623853823577756, 0.690027063364498]),
    "alpha 0 is DPO on the target pair": (0.0, [0.6209570477895321, 0.6443966600735709, 0.6807253035255248]),
    "alpha 1 is DPO on the source pair": (1.0, [0.5543552444685271, 0.7184596480132863, 0.7184596480132863]),
}


def _close(actual: Tensor, expected: list[float] | Tensor) -> None:
    wanted = expected if isinstance(expected, Tensor) else _tensor(expected)
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-12)


def terms(
    objective: str,
    policy: PerResponse = POLICY,
    reference: PerResponse | None = REFERENCE,
    lengths: PerResponse = LENGTHS,
    *,
    alpha: float = 0.0,
    weights: Sequence[float] | None = None,
    **settings: Any,
) -> ObjectiveTerms:
    """What a step of training computes; `weights` for other numbers of preferred responses than one row has."""
    params = TrainParams.model_validate({"model": {"name": "/m"}, "objective": objective, **settings})
    built = preference_objective(params)
    given_weights = built.weights(alpha) if weights is None else weights
    return built.terms(policy, reference if built.needs_reference else None, lengths, weights=given_weights)


def column(values: PerResponse, place: int) -> PerResponse:
    return PerResponse(preferred=values.preferred[:, [place]], rejected=values.rejected)


@pytest.mark.parametrize(("alpha", "expected"), WRPO_DPO.values(), ids=WRPO_DPO.keys())
def test_wrpo_dpo_equals_the_released_code(alpha: float, expected: list[float]) -> None:
    _close(terms("WRPO-DPO", alpha=alpha, beta=0.1).loss, expected)


def test_wrpo_dpo_with_the_published_beta_equals_the_released_code() -> None:
    assert terms("WRPO-DPO", alpha=0.1, beta=0.01).loss.mean().item() == pytest.approx(0.6887033288596882, abs=1e-12)


def test_label_smoothing_equals_the_released_code() -> None:
    loss = terms("WRPO-DPO", alpha=0.25, beta=0.1, label_smoothing=0.1).loss
    assert loss.mean().item() == pytest.approx(0.6606075784259561, abs=1e-12)


def test_wrpo_ipo_on_sums_equals_the_formula() -> None:
    _close(terms("WRPO-IPO", alpha=0.25, tau=0.1).loss, [9.765625, 19.140625, 24.37890625])


def test_wrpo_simpo_equals_the_formula() -> None:
    loss = terms("WRPO-SimPO", alpha=0.25, beta=2, gamma=0.6).loss
    _close(loss, [1.1079644700895714, 2.061169197804637, 0.2691251883565682])


SETTINGS: dict[str, dict[str, Any]] = {
    "DPO": {"beta": 0.1},
    "DPO, length-normalised": {"beta": 3, "length_normalized": True},
    "DPO, smoothed labels": {"beta": 0.1, "label_smoothing": 0.2},
    "SimPO": {"beta": 2, "gamma": 0.6},
    "IPO": {"tau": 0.1},
    "IPO, mean": {"tau": 0.5, "ipo_mean": True},
}


@pytest.mark.parametrize(("alpha", "place"), [(1.0, 0), (0.0, 1)], ids=["alpha 1, source pair", "alpha 0, target pair"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_ends_of_alpha_are_the_baseline_on_one_pair(name: str, alpha: float, place: int) -> None:
    form, settings = name.split(",", maxsplit=1)[0], SETTINGS[name]
    baseline = terms(form, *(column(values, place) for values in (POLICY, REFERENCE, LENGTHS)), **settings)
    _close(terms(f"WRPO-{form}", alpha=alpha, **settings).loss, baseline.loss)


def test_at_step_0_the_dpo_loss_is_ln_2_and_the_ipo_loss_is_the_target_squared() -> None:
    dpo = terms("WRPO-DPO", REFERENCE, alpha=0.3, beta=0.1)
    _close(dpo.loss, [math.log(2)] * 3)
    assert dpo.margin.tolist() == [0.0, 0.0, 0.0]
    _close(terms("WRPO-IPO", REFERENCE, alpha=0.3, tau=0.1).loss, [25.0] * 3)


def test_length_normalised_dpo_divides_each_log_ratio_by_its_own_length() -> None:
    loss = terms("WRPO-DPO", alpha=0.25, beta=10, length_normalized=True).loss
    margin = 10 * (0.25 * 2 / 8 + 0.75 * 0.5 / 6 - -1 / 7)
    assert loss[0].item() == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-12)


def test_ipo_on_means_divides_each_log_ratio_by_its_own_length() -> None:
    pair = (column(values, 1) for values in (POLICY, REFERENCE, LENGTHS))
    assert terms("IPO", *pair, tau=0.5, ipo_mean=True).loss[0].item() == pytest.approx(
        (0.5 / 6 + 1 / 7 - 1) ** 2, abs=1e-12
    )


def test_nll_is_the_mean_over_a_responses_tokens() -> None:
    _close(nll(POLICY.preferred[:, 0], LENGTHS.preferred[:, 0]), [12 / 8, 30 / 16, 7.25 / 5])


def test_three_preferred_responses_take_three_weights() -> None:
    policy = PerResponse(preferred=_tensor([[-1.0, -2.0, -3.0]]), rejected=_tensor([-4.0]))
    reference = PerResponse(preferred=_tensor([[-2.0, -2.0, -2.0]]), rejected=_tensor([-2.0]))
    loss = terms("DPO", policy, reference, reference, beta=1.0, weights=(0.5, 0.3, 0.2)).loss
    margin = 0.5 * 1 + 0.3 * 0 + 0.2 * -1 + 2
    assert loss.item() == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-12)


SHAPES = {
    "columns [B, 1] for the rejected": (torch.zeros(3, 2), torch.zeros(3, 1)),
    "rows of different number": (torch.zeros(3, 2), torch.zeros(2)),
    "preferred without a column": (torch.zeros(3), torch.zeros(3)),
}


@pytest.mark.parametrize(("preferred", "rejected"), SHAPES.values(), ids=SHAPES.keys())
def test_shapes_that_would_broadcast_are_refused(preferred: Tensor, rejected: Tensor) -> None:
    with pytest.raises(ValueError, match=r"preferred \[B, K\] and rejected \[B\]"):
        PerResponse(preferred=preferred, rejected=rejected)


WEIGHTS = {
    "too few": ((1.0,), "2 preferred responses need as many weights"),
    "sum above 1": ((0.5, 0.6), "weights must be non-negative with sum 1"),
    "negative": ((-0.5, 1.5), "weights must be non-negative with sum 1"),
}


@pytest.mark.parametrize(("weights", "message"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_off_the_simplex_are_refused(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_margin(POLICY, weights)


log_probability = st.floats(-200, 0, allow_nan=False)
triple = st.tuples(log_probability, log_probability, log_probability)
ONES = PerResponse(preferred=_tensor([[1.0, 1.0]]), rejected=_tensor([1.0]))


def _leaf(values: tuple[float, float, float]) -> tuple[PerResponse, Tensor]:
    flat = _tensor(values).requires_grad_()
    return PerResponse(preferred=flat[None, :2], rejected=flat[2:]), flat


@given(policy=triple, reference=triple, alpha=st.floats(0, 1), beta=st.floats(0.001, 1))
def test_gradients_of_the_three_log_probs_sum_to_zero_for_dpo(
    policy: tuple[float, float, float], reference: tuple[float, float, float], alpha: float, beta: float
) -> None:
    responses, flat = _leaf(policy)
    terms("WRPO-DPO", responses, _leaf(reference)[0], ONES, alpha=alpha, beta=beta).loss.sum().backward()
    assert flat.grad is not None
    assert flat.grad.sum().item() == pytest.approx(0, abs=1e-12)


@given(policy=triple, reference=triple, alpha=st.floats(0, 1), tau=st.floats(0.01, 1))
def test_gradients_of_the_three_log_probs_sum_to_zero_for_ipo(
    policy: tuple[float, float, float], reference: tuple[float, float, float], alpha: float, tau: float
) -> None:
    responses, flat = _leaf(policy)
    terms("WRPO-IPO", responses, _leaf(reference)[0], ONES, alpha=alpha, tau=tau).loss.sum().backward()
    assert flat.grad is not None
    assert flat.grad.sum().item() == pytest.approx(0, abs=1e-9)


@given(policy=triple, reference=triple, alpha=st.floats(0, 1), other=st.floats(0, 1))
def test_equal_source_and_target_responses_make_the_loss_independent_of_alpha(
    policy: tuple[float, float, float], reference: tuple[float, float, float], alpha: float, other: float
) -> None:
    same_policy = _leaf((policy[0], policy[0], policy[2]))[0]
    same_reference = _leaf((reference[0], reference[0], reference[2]))[0]
    one = terms("WRPO-DPO", same_policy, same_reference, ONES, alpha=alpha, beta=0.1).loss
    two = terms("WRPO-DPO", same_policy, same_reference, ONES, alpha=other, beta=0.1).loss
    assert one.item() == pytest.approx(two.item(), abs=1e-9)


@given(margin=st.floats(-50, 50), smoothing=st.floats(0, 0.49))
def test_label_smoothing_mixes_the_loss_with_that_of_the_swapped_pair(margin: float, smoothing: float) -> None:
    value = _tensor([margin])
    mixed = (1 - smoothing) * logistic_loss(value) + smoothing * logistic_loss(-value)
    assert logistic_loss(value, label_smoothing=smoothing).item() == pytest.approx(mixed.item(), abs=1e-9)


@st.composite
def weighted_rows(draw: st.DrawFn) -> tuple[PerResponse, PerResponse, list[float], list[int]]:
    """One row of K preferred responses, its reference, weights on the simplex, and a permutation of the K."""
    count = draw(st.integers(1, 6))
    values = draw(st.lists(log_probability, min_size=2 * (count + 1), max_size=2 * (count + 1)))
    raw = draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    policy, reference = values[: count + 1], values[count + 1 :]
    return (
        PerResponse(preferred=_tensor([policy[:-1]]), rejected=_tensor(policy[-1:])),
        PerResponse(preferred=_tensor([reference[:-1]]), rejected=_tensor(reference[-1:])),
        [value / sum(raw) for value in raw],
        draw(st.permutations(range(count))),
    )


def _losses(policy: PerResponse, reference: PerResponse, weights: list[float]) -> list[float]:
    lengths = PerResponse(preferred=1 - policy.preferred.round(), rejected=1 - policy.rejected.round())
    every = [
        terms("DPO", policy, reference, lengths, weights=weights, beta=0.1),
        terms("IPO", policy, reference, lengths, weights=weights, tau=0.1),
        terms("SimPO", policy, reference, lengths, weights=weights, beta=2, gamma=0.6),
    ]
    return [each.loss.item() for each in every]


def _chosen(values: PerResponse, columns: list[int]) -> PerResponse:
    return PerResponse(preferred=values.preferred[:, columns], rejected=values.rejected)


@given(row=weighted_rows())
def test_the_order_of_preferred_responses_does_not_matter(
    row: tuple[PerResponse, PerResponse, list[float], list[int]],
) -> None:
    policy, reference, weights, order = row
    shuffled = _losses(_chosen(policy, order), _chosen(reference, order), [weights[place] for place in order])
    assert shuffled == pytest.approx(_losses(policy, reference, weights), rel=1e-9, abs=1e-9)


@given(row=weighted_rows())
def test_a_corner_of_the_simplex_is_the_baseline_on_that_response(
    row: tuple[PerResponse, PerResponse, list[float], list[int]],
) -> None:
    policy, reference, weights, order = row
    corner = [float(place == order[0]) for place in range(len(weights))]
    alone = _losses(_chosen(policy, order[:1]), _chosen(reference, order[:1]), [1.0])
    assert _losses(policy, reference, corner) == pytest.approx(alone, rel=1e-9, abs=1e-9)


@given(row=weighted_rows())
def test_a_response_given_twice_shares_its_weight(
    row: tuple[PerResponse, PerResponse, list[float], list[int]],
) -> None:
    policy, reference, weights, _ = row
    columns = [*range(len(weights)), 0]
    halved = [weights[0] / 2, *weights[1:], weights[0] / 2]
    twice = _losses(_chosen(policy, columns), _chosen(reference, columns), halved)
    assert twice == pytest.approx(_losses(policy, reference, weights), rel=1e-9, abs=1e-9)


@given(row=weighted_rows())
def test_the_gradients_of_k_preferred_responses_are_in_proportion_to_their_weights(
    row: tuple[PerResponse, PerResponse, list[float], list[int]],
) -> None:
    policy, reference, weights, _ = row
    preferred = policy.preferred.clone().requires_grad_()
    rejected = policy.rejected.clone().requires_grad_()
    responses = PerResponse(preferred=preferred, rejected=rejected)
    terms("DPO", responses, reference, policy, beta=0.1, weights=weights).loss.sum().backward()
    assert preferred.grad is not None
    assert rejected.grad is not None
    expected = [-weight * rejected.grad.item() for weight in weights]
    assert preferred.grad[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_policy_and_reference_of_two_shapes_are_refused_though_they_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"^policy and reference must have one shape; got \(3, 2\) and \(3, 1\)$"):
        log_ratios(POLICY, column(REFERENCE, 1))


def test_label_smoothing_of_one_is_the_loss_of_the_swapped_pair() -> None:
    margin = _tensor([-2.0, 0.5, 3.0])
    _close(logistic_loss(margin, label_smoothing=1.0), logistic_loss(-margin))
