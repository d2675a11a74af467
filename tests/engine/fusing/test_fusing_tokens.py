"""Texts of tokens in bytes, by the kinds of tokenizers that models have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS

from wrpo_engine.fusing.positions import END, OUTSIDE, by_spans
from wrpo_engine.fusing.tokens import Vocabulary, label_starts, vocabulary_of
from wrpo_engine.fusing.vocabulary import edit_map
from wrpo_engine.text.chat import conversation_token_ids, end_of_turn_id

EXACT = [
    "byte-level",
    "SentencePiece, a blank in front of the text",
    "SentencePiece, a blank in front of each stretch",
    "Unigram",
    "control tokens that are not marked",
]
"""Kinds that give the bytes of their tokens and keep texts as they are."""
OTHERS = ["WordPiece", "written in Python"]


def of_kind(kind: str) -> tuple[Any, Vocabulary]:
    tokenizer = KINDS[kind]()
    return tokenizer, vocabulary_of(tokenizer, end_of_turn_id(tokenizer))


@pytest.mark.parametrize("kind", OTHERS)
def test_tokenizers_that_do_not_give_bytes_are_known(kind: str) -> None:
    _, vocabulary = of_kind(kind)
    assert not vocabulary.has_bytes


texts = st.text(st.sampled_from("abc the quick\n .,?!0\u00e9\u00fc"), min_size=1, max_size=40)


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_the_labels_of_a_response_begin_where_their_bytes_do(kind: str, text: str) -> None:
    tokenizer, vocabulary = of_kind(kind)
    assert vocabulary.has_bytes
    conversation = conversation_token_ids(tokenizer, "Why?", [text])
    response = conversation.responses[0]
    starts = label_starts(vocabulary, response.ids, text)
    if response.change is not None:
        return
    assert starts is not None
    assert starts[-1] == END
    inside = [start for start in starts if start >= 0]
    assert inside == sorted(set(inside))
    assert inside[0] == 0
    # What begins at a byte and ends where the next label begins is the text of the token.
    size = len(text.encode())
    for index, start in zip(response.ids, starts, strict=True):
        if start > 0:
            stop = min(min((other for other in inside if other > start), default=size), size)
            token = (vocabulary.texts[index] or "").encode("latin-1")
            assert token[: stop - start] == text.encode()[start:stop]


@settings(max_examples=60, deadline=None)
@given(text=texts, kinds=st.tuples(st.sampled_from(EXACT), st.sampled_from(EXACT)))
def test_labels_at_common_boundaries_are_paired_and_the_ends_of_turns_too(text: str, kinds: tuple[str, str]) -> None:
    found = []
    for kind in kinds:
        tokenizer, vocabulary = of_kind(kind)
        response = conversation_token_ids(tokenizer, "Why?", [text]).responses[0]
        if response.change is not None:
            return
        starts = label_starts(vocabulary, response.ids, text)
        assert starts is not None
        found.append(starts)
    target, source = found
    pairs = by_spans(target, source)
    common = {start for start in target if start != OUTSIDE} & set(source)
    assert {target[index] for index, place in enumerate(pairs) if place >= 0} == common
    assert {0, END} <= common
    if kinds[0] == kinds[1]:
        assert [index for index, start in enumerate(target) if start != OUTSIDE] == [
            place for place in pairs.tolist() if place >= 0
        ]


def test_a_truncated_response_ends_outside_of_the_text() -> None:
    tokenizer, vocabulary = of_kind("byte-level")
    text = "the quick brown fox jumps"
    ids = conversation_token_ids(tokenizer, "Why?", [text]).responses[0].ids
    starts = label_starts(vocabulary, [*ids[:2], ids[-1]], text)
    whole = label_starts(vocabulary, ids, text)
    assert whole is not None
    assert starts == [*whole[:2], OUTSIDE]


def test_a_text_that_the_tokens_do_not_give_back_has_no_starts() -> None:
    tokenizer, vocabulary = of_kind("a normaliser before control tokens")
    ids = conversation_token_ids(tokenizer, "Why?", ["THE FOX"]).responses[0].ids
    assert label_starts(vocabulary, ids, "THE FOX") is None


@pytest.mark.parametrize("kinds", [("byte-level", "Unigram"), ("Unigram", "byte-level")])
def test_vocabularies_of_different_kinds_meet_in_their_bytes(kinds: tuple[str, str]) -> None:
    (_, source), (_, target) = map(of_kind, kinds)
    found = edit_map(source.texts, target.texts)
    for one, other, distance in zip(source.texts, found.target_ids, found.distances, strict=True):
        if one is not None and distance == 0:
            assert target.texts[other] == one
    blank = source.texts.index(" ")
    assert target.texts[found.target_ids[blank]] == " "


def test_byte_tokens_do_not_take_the_place_of_pieces() -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    named = {"<unk>": 0, "<0x41>": 1, "<0x0A>": 2, "A": 3, "\u2581": 4, "</s>": 5}
    backend = Tokenizer(models.BPE(vocab=named, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    vocabulary = vocabulary_of(tokenizer, 5)
    assert vocabulary.texts == (None, None, "\n", "A", " ", None)
