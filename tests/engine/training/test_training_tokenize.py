"""Tokenising: each response cut by itself, one BOS, one end-of-turn, every dropped row counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import CHATML, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.config import OptimizerParams
from wrpo_engine.errors import DataError
from wrpo_engine.training.inputs import ChatEncoder, read_sft_rows, read_triples
from wrpo_engine.training.rows import TokenRow
from wrpo_engine.training.token_cache import read_tokens, write_tokens
from wrpo_engine.training.tokenize import (
    TextRow,
    TokenizedRows,
    cut_response,
    require_rows,
    tokenize_rows,
)

BOS_TEMPLATE = "{{ bos_token }}" + CHATML


def params(**changes: int) -> OptimizerParams:
    return OptimizerParams.model_validate({"learning_rate": 1, "max_length": 80, "max_prompt_length": 60, **changes})


def tokenize(*rows: TextRow, tokenizer: Any = None, **changes: int) -> TokenizedRows:
    return tokenize_rows(rows, ChatEncoder(tokenizer or make_tokenizer()), params(**changes))


def test_one_over_long_response_is_cut_and_leaves_its_siblings_whole() -> None:
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    row = tokenize(TextRow("a", "why", ("x" * 200, "yes", "no")), tokenizer=tokenizer).rows[0]
    long, yes, no = row.responses
    assert len(row.prompt) + len(long) == 80
    assert (long[-1], yes[-1], no[-1]) == (end, end, end)
    assert tokenizer.decode(yes[:-1]) == "yes"
    assert tokenizer.decode(no[:-1]) == "no"


def test_cut_responses_are_counted() -> None:
    tokenized = tokenize(TextRow("a", "why", ("x" * 200, "y" * 200, "no")), TextRow("b", "why", ("a", "b", "c")))
    assert (len(tokenized.rows), tokenized.num_truncated) == (2, 2)


TOKENIZERS = {
    "no BOS token at all": make_tokenizer(),
    "BOS written by the template and added by the tokenizer": make_tokenizer(
        template=BOS_TEMPLATE, bos="<s>", adds_bos=True
    ),
    "BOS added by the tokenizer only": make_tokenizer(bos="<s>", adds_bos=True),
    "end-of-text beside end-of-turn": make_tokenizer(eos="<eos>"),
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_every_sequence_has_one_bos_and_one_end_of_turn(tokenizer: Any) -> None:
    row = tokenize(TextRow("a", "why", ("because", "so", "no")), tokenizer=tokenizer).rows[0]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if tokenizer.bos_token_id is not None:
        assert [row.prompt.count(tokenizer.bos_token_id), row.prompt[0]] == [1, tokenizer.bos_token_id]
    for response in row.responses:
        assert [response.count(end), response[-1]] == [1, end]
        assert response.count(tokenizer.eos_token_id) == (1 if tokenizer.eos_token_id == end else 0)


DROPPED = {
    "an empty response": (TextRow("a", "why", ("x", "", "y")), "empty response"),
    "a prompt above maxPromptLength": (TextRow("a", "w" * 70, ("x", "y", "z")), "prompt longer than maxPromptLength"),
}


@pytest.mark.parametrize(("row", "reason"), DROPPED.values(), ids=DROPPED.keys())
def test_a_dropped_row_is_counted_by_its_reason(row: TextRow, reason: str) -> None:
    tokenized = tokenize(row, TextRow("b", "why", ("a", "b", "c")))
    assert ([kept.row_id for kept in tokenized.rows], dict(tokenized.dropped)) == (["b"], {reason: 1})


def test_a_prompt_that_leaves_no_room_is_dropped_and_counted() -> None:
    tokenized = tokenize(TextRow("a", "w" * 60, ("x", "y", "z")), max_prompt_length=1000)
    assert dict(tokenized.dropped) == {"prompt leaves no room for a response in maxLength": 1}


def test_nothing_to_train_on_is_an_error_that_says_why() -> None:
    tokenized = tokenize(TextRow("a", "w" * 70, ("x", "y", "z")))
    with pytest.raises(DataError) as caught:
        require_rows(tokenized, num_rows=1, artifact="curate-triples/0123")
    assert str(caught.value) == (
        "none of the 1 rows of curate-triples/0123 can be trained on: 1 prompt longer than maxPromptLength"
    )
    assert caught.value.exit_code == 65


def test_no_rows_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^curate-sft/0123 holds no rows to train on$"):
        require_rows(TokenizedRows([]), num_rows=0, artifact="curate-sft/0123")


@given(ids=st.lists(st.integers(0, 9), min_size=2, max_size=30), limit=st.integers(2, 40))
def test_a_cut_response_keeps_its_beginning_and_its_end_of_turn(ids: list[int], limit: int) -> None:
    cut = cut_response(ids, limit)
    assert len(cut) == min(len(ids), limit)
    assert cut[-1] == ids[-1]
    assert cut[:-1] == ids[: len(cut) - 1]


def test_tokens_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    tokenized = tokenize(TextRow("a", "why", ("x" * 200, "yes", "no")), TextRow("b", "w" * 70, ("x", "y", "z")))
    write_tokens(tmp_path / "rows.parquet", tokenized)
    assert read_tokens(tmp_path / "rows.parquet") == tokenized


def test_triples_are_read_in_the_order_source_target_rejected(tmp_path: Path) -> None:
    pl.DataFrame(
        {"prompt_id": ["a"], "prompt": ["p"], "rejected": ["l"], "target_chosen": ["wt"], "source_chosen": ["ws"]}
    ).write_parquet(tmp_path / "t.parquet")
    assert read_triples(tmp_path / "t.parquet", has_source=True) == [TextRow("a", "p", ("ws", "wt", "l"))]
    assert read_triples(tmp_path / "t.parquet", has_source=False) == [TextRow("a", "p", ("wt", "l"))]


def test_triples_without_source_responses_do_not_fit_wrpo(tmp_path: Path) -> None:
    pl.DataFrame(
        {"prompt_id": ["a"], "prompt": ["p"], "source_chosen": [None], "target_chosen": ["wt"], "rejected": ["l"]},
        schema_overrides={"source_chosen": pl.String},
    ).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"1 rows of .* lack one of prompt_id, prompt, source_chosen"):
        read_triples(tmp_path / "t.parquet", has_source=True)


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    pl.DataFrame({"prompt_id": ["a"], "text": ["p"]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"lacks the columns prompt, response; it has prompt_id, text"):
        read_sft_rows(tmp_path / "t.parquet")


def test_the_cost_of_a_row_counts_the_prompt_for_every_response() -> None:
    row = TokenRow("a", (1, 2, 3), ((4, 5), (6,)))
    assert (row.sequence_lengths, row.num_tokens, row.num_loss_tokens) == ((5, 4), 9, 3)
