"""The numbers of PackLLM and EVA are those of their authors' code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wrpo_engine.errors import DataError
from wrpo_engine.joint.agreement import agreeing, ensemble, likeliest
from wrpo_engine.joint.bridge import anchors_of, bridge, project, similarities, unit
from wrpo_engine.joint.tokens import nearest_tokens, space_mark
from wrpo_engine.joint.weighting import (
    best_first,
    fused,
    loss_of,
    optimal_weights,
    read_of,
    similarity_weights,
)

DIRECTORY = Path(__file__).parents[2] / "golden" / "comparisons"
PACK: dict[str, Any] = json.loads((DIRECTORY / "packllm.json").read_text(encoding="utf-8"))
EVA: dict[str, Any] = json.loads((DIRECTORY / "eva.json").read_text(encoding="utf-8"))
LOGITS = list(torch.tensor(PACK["logits"]))
READ = read_of(PACK["input_ids"], PACK["eos_id_ignored"])
LOSSES = [loss_of(logits, READ) for logits in LOGITS]


def printed(method: str) -> list[str]:
    return [line.split(":")[1].strip() for line in PACK["fusion"][method]["printed"]]


def test_losses_leave_out_the_end_of_the_text() -> None:
    assert pytest.approx(PACK["mean_losses"], abs=1e-5) == LOSSES
    assert [np.exp(loss) for loss in LOSSES] == pytest.approx(PACK["perplexities"], abs=1e-4)
    assert read_of([1], None).targets.tolist() == []
    assert loss_of(LOGITS[0][:1], read_of([1], None)) == 0


def weights_of(method: str) -> list[float]:
    order = best_first(LOSSES)
    return {
        "sim": similarity_weights(LOSSES),
        "opt": optimal_weights(LOGITS, LOSSES, READ),
        "top1": [float(model == order[0]) for model in range(3)],
        "ensemble": [1 / 3] * 3,
    }[method]


@pytest.mark.parametrize("method", ["sim", "opt", "top1", "ensemble"])
def test_fused_logits_are_those_of_the_released_code(method: str) -> None:
    expected = PACK["fusion"][method]
    total = fused(LOGITS, weights_of(method))
    # The released code keeps the logits that have a target: the last of them are those before the last token.
    np.testing.assert_allclose(total[-2], expected["logits_last"], atol=1e-5)
    assert loss_of(total, READ) == pytest.approx(expected["loss"], abs=1e-5)


def test_weights_are_those_of_the_released_code() -> None:
    assert weights_of("sim") == pytest.approx(json.loads(printed("sim")[0]), abs=1e-6)
    order = best_first(LOSSES)
    assert order == json.loads(printed("opt")[0])
    assert [weights_of("opt")[model] for model in order] == pytest.approx(json.loads(printed("opt")[1]), abs=1e-9)


def test_similarity_weights_are_a_softmax_of_losses() -> None:
    golden = PACK["softmax_weights"]
    for case, expected in golden["expected"].items():
        name, _, tau = case.partition("_tau")
        assert similarity_weights(golden["losses"][name], float(tau)) == pytest.approx(expected, abs=1e-7)


def test_tokens_are_mapped_by_least_edit_distance() -> None:
    golden = PACK["mined"]
    base = golden["base_vocab_in_order"]
    tokens = list(golden["expected"])
    places = nearest_tokens(tokens, base, mark=golden["blending_space"], other_mark=golden["base_space"])
    assert {token: base[place] for token, place in zip(tokens, places, strict=True)} == golden["expected"]
    assert space_mark(tokens) == golden["blending_space"]
    assert space_mark(base) == golden["base_space"]


def test_the_likeliest_tokens_have_the_probabilities_of_the_released_code() -> None:
    golden = EVA["top_k"]
    np.testing.assert_allclose(
        likeliest(torch.tensor(golden["logits"]), golden["k"]), golden["probabilities"], atol=1e-6
    )


@pytest.mark.parametrize("k", EVA["drop"]["keeps"])
def test_models_without_agreement_are_dropped(k: str) -> None:
    probabilities = torch.tensor(EVA["top_k"]["probabilities"])
    assert agreeing(probabilities, int(k)) == EVA["drop"]["keeps"][k]
    np.testing.assert_allclose(ensemble(probabilities, int(k)), EVA["drop"]["ensemble"][k], atol=1e-6)


PROJECTION = EVA["projection"]
MAIN, AUX = np.array(PROJECTION["main"]), np.array(PROJECTION["aux"])
ANCHORS = [(one, other) for one, other in PROJECTION["dictionary"]]


def test_projected_embeddings_are_those_of_the_released_code_up_to_rotation() -> None:
    main, aux = project(MAIN, AUX, ANCHORS)
    np.testing.assert_allclose(unit(main) @ unit(aux).T, PROJECTION["cosine"], atol=1e-5)
    expected = np.array(PROJECTION["main_mapped"])
    np.testing.assert_allclose(main @ main.T, expected @ expected.T, atol=1e-5)
    np.testing.assert_allclose(
        similarities(unit(main), unit(aux), untouched=range(3)), PROJECTION["csls_neighborhood1"], atol=1e-5
    )


def test_fewer_anchors_than_dimensions_are_refused_with_their_number() -> None:
    with pytest.raises(DataError) as caught:
        project(MAIN, AUX, ANCHORS[:3])
    assert caught.value.message == (
        "the vocabularies have 3 tokens in common, but embeddings of 4 dimensions need at least 4 to be compared"
    )
    assert caught.value.hint
    with pytest.raises(DataError, match="have 0 tokens in common"):
        project(MAIN, AUX, anchors_of(["a"], ["b"]))


def test_anchors_that_do_not_span_the_space_are_refused() -> None:
    with pytest.raises(DataError, match="the 5 common tokens' embeddings span 1 of 4 dimensions"):
        project(MAIN, AUX, [(0, 0)] * 5)


def test_embeddings_of_unlike_width_are_compared() -> None:
    generator = np.random.default_rng(0)
    main = generator.standard_normal((60, 6))
    aux = main[:, :] @ generator.standard_normal((6, 9))
    aux += 0.01 * generator.standard_normal(aux.shape)
    one, other = project(main, aux, [(index, index) for index in range(40)])
    assert one.shape[1] == other.shape[1] == 6
    nearest = (unit(one) @ unit(other).T).argmax(axis=0)
    assert (nearest == np.arange(60)).mean() > 0.9


def test_anchors_are_the_first_of_equal_tokens() -> None:
    assert anchors_of(["a", None, "b", "a"], ["b", "b", None, "a", "c"]) == [(0, 3), (2, 0)]


def test_the_same_vocabulary_is_bridged_by_the_identity() -> None:
    rows = np.random.default_rng(1).standard_normal((50, 4))
    main, other = project(rows, rows, [(index, index) for index in range(50)])
    table = bridge(main, other, {}, neighbours=1, threshold=0.1)
    assert torch.equal(table.to_dense(), torch.eye(50))


def test_distributions_stay_distributions_unless_a_token_is_like_many() -> None:
    rows = np.random.default_rng(2).standard_normal((40, 4))
    main, other = project(rows, rows[:30], [(index, index) for index in range(30)])
    sums = bridge(main, other, {3: 7}, neighbours=10, threshold=0.1).to_dense()
    assert sums[3].tolist() == [float(index == 7) for index in range(40)]
    totals = sums.sum(dim=1)
    assert all(abs(total - 1) < 1e-6 or total == 0 for total in totals.tolist())
    flat = np.ones((8, 2)) + 1e-4 * np.arange(16).reshape(8, 2)
    assert bridge(flat, flat, {}, neighbours=8, threshold=0.1).to_dense().sum() == 0
