"""Distributions in the target's vocabulary: handed values of FuseLLM and FuseChat, and laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.head_logps import head_logps
from test_fusing_alignment import golden, vocabularies

from wrpo_engine.contract.fusion import AlignFields
from wrpo_engine.fusing.distributions import (
    EMPTY,
    Kept,
    average_weights,
    averaged,
    least,
    mapped,
    one_hot_share,
    probabilities,
    rows_at,
    with_one_hot,
)
from wrpo_engine.fusing.dtw import Preference
from wrpo_engine.fusing.fuse import ModelRow, Source, fuse
from wrpo_engine.fusing.positions import END, NONE, OUTSIDE, Matching, Tokens, by_spans, by_warping, predicted
from wrpo_engine.fusing.tokens import Vocabulary
from wrpo_engine.fusing.vocabulary import edit_map
from wrpo_engine.training.batch.soft import FusedRow, mixed_targets


def kept_of(ids: list[list[int]], logits: list[list[float]]) -> Kept:
    return Kept(np.array(ids, dtype=np.int32), np.array(logits, dtype=np.float32))


def listed(kept: Kept) -> tuple[list[list[int]], list[list[float]]]:
    places = kept.ids_TK != EMPTY
    return (
        [row[place].tolist() for row, place in zip(kept.ids_TK, places, strict=True)],
        [row[place].tolist() for row, place in zip(kept.logits_TK, places, strict=True)],
    )


@pytest.mark.parametrize(("kind", "rule"), [("hard", "EM"), ("soft", "MinED")])
def test_the_aligned_logits_of_fusellm_are_met(kind: str, rule: Any) -> None:
    source, target, _ = vocabularies("fusellm")
    case = golden("fusellm")["alignment"]
    vocabulary = edit_map(source, target)
    aligned = by_warping(
        Tokens(case["base_ids"], [target[index] for index in case["base_ids"]]),
        Tokens(case["blending_ids"], [source[index] for index in case["blending_ids"]]),
        Matching(rule, vocabulary, preference=Preference.UP_FIRST),
    )
    kept = kept_of(case["blending_topk_indices"], case["blending_topk_logits"])
    # The released code of FuseLLM: one-hot on the token itself.
    found = with_one_hot(mapped(rows_at(kept, aligned), vocabulary.target_ids), np.array(case["base_ids"]))
    ids, logits = listed(found)
    assert ids == case["expected"][kind]["indices"]
    assert [pytest.approx(row) for row in logits] == case["expected"][kind]["logits"]


def dense_losses(name: str) -> dict[str, float]:
    """The losses of the golden file by the pure functions and the chunked head."""
    case = golden("fusellm")["loss"]
    logits = torch.tensor(case["logits"])
    names = ["base", "0", "1"] if name == "fusellm" else ["base", "0"]
    distributions = [np.array(case[f"dist_{one}"], dtype=np.float32) for one in names]
    metrics = np.array([case[f"metric_{one}"] for one in names])
    if name == "fusellm":
        labels = torch.tensor(case["labels"])
        attended = torch.tensor(case["attention_mask"]).bool()
    else:
        labels = torch.tensor(golden("fusechat")["fusion_loss"]["labels"])
        attended = torch.zeros(labels.shape, dtype=torch.bool)
        attended[:, :-1] = labels[:, 1:] != -100
    predicts = torch.zeros(labels.shape, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != -100
    head = torch.eye(logits.shape[-1])
    lm = -head_logps(logits[predicts], head, labels[:, 1:][predicts[:, :-1]]).logps_R.mean().item()

    def fusion(fused: np.ndarray[Any, Any]) -> tuple[float, float]:
        chosen = fused[attended.numpy()]
        ids = np.tile(np.arange(chosen.shape[-1], dtype=np.int32), (len(chosen), 1))
        tokens = torch.zeros(len(chosen), dtype=torch.long)
        soft = mixed_targets([FusedRow(ids, chosen, 1.0)], tokens)
        cross_entropy = -head_logps(logits[attended], head, tokens, soft=soft).logps_R.mean().item()
        return cross_entropy, cross_entropy + float((chosen * np.log(chosen)).sum(-1).mean())

    sequences = range(len(labels))
    lowest = np.stack([distributions[least(metrics[:, row].tolist())][row] for row in sequences])
    everything = [np.arange(5, dtype=np.int32)[None].repeat(4, axis=0)] * len(names)
    mean = np.stack(
        [
            _in_order(
                *averaged(everything, [one[row] for one in distributions], average_weights(metrics[:, row].tolist()), 5)
            )
            for row in sequences
        ]
    )
    weight = case["lm_loss_weight"]
    (ce, kl), (average, _) = fusion(lowest), fusion(mean)
    return {
        "lm_loss": lm,
        "mince_ce": weight * lm + (1 - weight) * ce,
        "mince_kl": weight * lm + (1 - weight) * kl,
        "avgce_ce": weight * lm + (1 - weight) * average,
    }


def _in_order(ids: Any, shares: Any) -> Any:
    dense = np.zeros(ids.shape, dtype=np.float32)
    np.put_along_axis(dense, ids, shares, axis=1)
    return dense


def test_the_losses_of_fusellm_are_met() -> None:
    expected, found = golden("fusellm")["loss"]["expected"], dense_losses("fusellm")
    assert found["lm_loss"] == pytest.approx(expected["lm_loss"], abs=1e-6)
    assert found["mince_ce"] == pytest.approx(expected["mince_ce"], abs=1e-6)
    assert found["mince_kl"] == pytest.approx(expected["mince_kl"], abs=1e-6)
    # The original computes exp(-CE) in bfloat16.
    assert found["avgce_ce"] == pytest.approx(expected["avgce_ce"], abs=5e-4)


def test_the_losses_of_fusechat_are_met() -> None:
    case, found = golden("fusechat")["fusion_loss"], dense_losses("fusechat")
    assert found["lm_loss"] == pytest.approx(case["lm_loss"], abs=1e-6)
    assert found["mince_ce"] == pytest.approx(case["expected"]["ce"], abs=1e-6)
    assert found["mince_kl"] == pytest.approx(case["expected"]["kl"], abs=1e-6)


def test_the_kept_logits_of_a_position_are_normalised_alone() -> None:
    case = golden("fusellm")["sparse_loss"]
    width = max(map(len, case["kept_indices"]))
    ids = [[*row, *[EMPTY] * (width - len(row))] for row in case["kept_indices"]]
    logits = [[*row, *[9.0] * (width - len(row))] for row in case["kept_logits"]]
    found = probabilities(kept_of(ids, logits))
    for row, kept in zip(found, case["kept_logits"], strict=True):
        assert row[: len(kept)] == pytest.approx(torch.tensor(kept).softmax(-1).tolist())
        assert row[len(kept) :].tolist() == [0.0] * (width - len(kept))
    halved = probabilities(kept_of([[1, 2]], [[2.0, 1.0]]), temperature=2.0)
    assert halved[0].tolist() == pytest.approx(torch.tensor([1.0, 0.5]).softmax(-1).tolist())


def test_of_entries_with_one_id_the_first_stays_and_unmapped_ones_are_dropped() -> None:
    found = mapped(kept_of([[0, 1, 2, 3]], [[4, 3, 2, 1]]), np.array([7, EMPTY, 7, 5]))
    assert listed(found) == ([[7, 5]], [[4.0, 1.0]])


def test_ids_of_padded_embeddings_that_the_tokenizer_does_not_have_are_dropped() -> None:
    found = mapped(kept_of([[9, 1, EMPTY], [2, 3, 4]], [[4, 3, 0], [2, 1, 0]]), np.array([5, 6]))
    assert listed(found) == ([[6], []], [[3.0], []])


def test_positions_without_an_entry_are_one_hot_and_counted() -> None:
    kept = rows_at(kept_of([[0, 1], [1, 0]], [[1, 2], [3, 4]]), np.array([1, NONE, 0, NONE]))
    assert one_hot_share(kept) == 0.5
    assert listed(with_one_hot(kept, np.array([9, 8, 7, 6])))[0] == [[1, 0], [8], [0, 1], [6]]


def test_the_first_of_equal_cross_entropies_wins_and_missing_ones_never_do() -> None:
    assert least([1.0, 0.5, 0.5]) == 1
    assert least([float("nan"), 2.0]) == 1
    # Equal in float32.
    assert least([1.0 + 1e-9, 1.0]) == 0


def test_averages_leave_out_missing_models_and_keep_the_likeliest_ids() -> None:
    weights = average_weights([1.0, float("nan"), 2.0])
    assert weights[1] == 0
    assert weights.sum() == pytest.approx(1)
    assert weights[0] / weights[2] == pytest.approx(np.exp(np.exp(-1) - np.exp(-2)))
    ids_of, shares_of = [np.array([[4, 5]]), np.array([[5, 6]])], [np.array([[0.6, 0.4]]), np.array([[0.7, 0.3]])]
    ids, shares = averaged(ids_of, shares_of, np.array([0.5, 0.5]), 2)
    assert ids.tolist() == [[5, 4]]
    assert shares[0].tolist() == pytest.approx([0.55 / 0.85, 0.3 / 0.85])


def test_averages_of_many_entries_are_those_of_each_position(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    ids = [np.stack([generator.permutation(30)[:6] for _ in range(50)]) for _ in range(3)]
    shares = [generator.dirichlet(np.ones(6), size=50) for _ in range(3)]
    weights = np.array([0.5, 0.3, 0.2])
    whole = averaged(ids, shares, weights, 5)
    monkeypatch.setattr("wrpo_engine.fusing.distributions._CELLS", 1)
    alone = averaged(ids, shares, weights, 5)
    for place in range(50):
        dense = np.zeros(30)
        for one, share, weight in zip(ids, shares, weights, strict=True):
            dense[one[place]] += weight * share[place]
        likeliest = np.sort(dense)[::-1][:5]
        assert whole[1][place].tolist() == pytest.approx(likeliest / likeliest.sum())
        assert dense[whole[0][place]].tolist() == pytest.approx(likeliest)
    assert np.array_equal(whole[0], alone[0])
    assert np.array_equal(whole[1], alone[1])


def test_spans_pair_labels_that_begin_at_the_same_byte() -> None:
    target, source = [0, 3, 5, OUTSIDE, END], [0, OUTSIDE, 2, 5, END]
    assert by_spans(target, source).tolist() == [0, NONE, 3, NONE, 4]


def test_what_follows_an_aligned_token_predicts_the_next_label() -> None:
    assert predicted(np.array([0, 2, NONE, 3])).tolist() == [0, 1, 3, NONE]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=20), st.lists(st.integers(1, 4), min_size=1, max_size=20))
def test_spans_find_exactly_the_common_boundaries(target: list[int], source: list[int]) -> None:
    starts = [np.concatenate([[0], np.cumsum(lengths)[:-1]]).tolist() for lengths in (target, source)]
    found = by_spans(*starts)
    assert {starts[0][index] for index in np.flatnonzero(found != NONE)} == set(starts[0]) & set(starts[1])
    assert all(starts[1][place] == start for start, place in zip(starts[0], found, strict=True) if place != NONE)
    assert by_spans(starts[0], starts[0]).tolist() == list(range(len(target)))


PLAIN = Vocabulary(("the", " the", "x", None), 3, has_bytes=True)
BLANK = Vocabulary((" the", "the", " x", None), 3, has_bytes=True)


@pytest.mark.parametrize(
    ("own", "other", "label", "first"),
    [(PLAIN, BLANK, 0, [0, 2, 3]), (BLANK, PLAIN, 0, [0, 2, 3])],
    ids=["the source writes the blank", "the target writes it"],
)
def test_the_first_token_is_mapped_without_the_blank_that_one_tokenizer_writes(
    own: Vocabulary, other: Vocabulary, label: int, first: list[int]
) -> None:
    """The second token has the same entries, whose blanks belong to the text."""
    kept = kept_of([[0, 2, 3]] * 2, [[3, 2, 1]] * 2)
    target = ModelRow("r", (label, 1), (0, 3), kept, 9.0, 6)
    row = ModelRow("r", (0, 1), (0, 3), kept, 1.0, 6)
    source = Source.of("s", other, own, edit_map(other.texts, own.texts).replaced({3: 3}))
    found = fuse(target, [row], [source], AlignFields())
    assert found.source == "s"
    ids, _ = listed(Kept(found.ids_TK, found.probabilities_TK))
    assert ids[0] == first
    assert ids[1][0] == own.texts.index(other.texts[0])
