"""Tokenisation: each response truncated alone, one BOS, one end-of-turn, every dropped row counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import CHATML, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import KINDS

from wrpo_engine.config import OptimizerParams
from wrpo_engine.errors import DataError
from wrpo_engine.text.plaintext import ControlTokenInTextError
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.data.inputs import ChatEncoder, read_sft_rows, read_triples
from wrpo_engine.training.data.token_cache import read_tokens, write_tokens
from wrpo_engine.training.data.tokenize import (
    TextRow,
    TokenizedRows,
    cut_response,
    require_rows,
    require_unchanged,
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
    "end-of-text in addition to end-of-turn": make_tokenizer(eos="<eos>"),
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


def test_rows_that_quote_control_tokens_are_trained_whole_and_counted() -> None:
    tokenizer = make_tokenizer()
    texts = ("In ChatML a turn ends with <|im_end|> and the next one begins after it.", "No <|im_end|> idea at all")
    tokenized = tokenize(TextRow("a", "why", texts), TextRow("b", "why", ("x", "y")), max_length=200)
    quoting, plain = tokenized.rows
    assert [tokenizer.decode(ids) for ids in quoting.responses] == [text + "<|im_end|>" for text in texts]
    assert [len(ids) for ids in quoting.responses] == [72, 26]
    assert quoting.prompt == plain.prompt
    assert (tokenized.num_control_text, dict(tokenized.changed)) == (1, {})


LOWER_CASED = KINDS["a normaliser before control tokens"]
SPELLING = "letter case, accents, white space or compatibility characters"


def lower_cased(num_rows: int, num_changed: int) -> TokenizedRows:
    rows = [TextRow(f"r{index}", "why", ("So." if index < num_changed else "so.",)) for index in range(num_rows)]
    return tokenize(*rows, tokenizer=LOWER_CASED())


def test_rows_that_the_tokenizer_changes_are_counted_logged_and_trained(caplog: pytest.LogCaptureFixture) -> None:
    tokenized = lower_cased(20, 2)
    assert (len(tokenized.rows), dict(tokenized.changed), tokenized.first_changed) == (20, {SPELLING: 2}, "r0")
    require_unchanged(tokenized, num_rows=20, artifact="curate-sft/0123", field="target.model")
    (message,) = caplog.messages
    assert message == (
        "2 of 20 rows of curate-sft/0123 (10.0%) have a response that the model's tokenizer changes; "
        f"the first is row r0; changes: 2 {SPELLING}"
    )


def test_too_many_changed_rows_are_refused_with_their_number_and_the_first_one() -> None:
    with pytest.raises(DataError) as caught:
        require_unchanged(lower_cased(20, 3), num_rows=20, artifact="curate-sft/0123", field="target.model")
    assert caught.value.message == (
        "3 of 20 rows of curate-sft/0123 (15.0%) have a response that the model's tokenizer changes; "
        f"the first is row r0; changes: 3 {SPELLING}. At most 10% of the rows may differ"
    )
    assert (caught.value.exit_code, caught.value.code, caught.value.field) == (65, "ResponsesChanged", "target.model")
    assert caught.value.hint == (
        "Train a model whose tokenizer keeps texts as they are, or rewrite or remove these responses."
    )


def test_unchanged_rows_are_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    require_unchanged(lower_cased(3, 0), num_rows=3, artifact="curate-sft/0123", field="target.model")
    assert caplog.messages == []


def test_a_row_whose_control_token_cannot_be_text_is_left_out_and_counted() -> None:
    class Unable:
        def encode(self, prompt: Any, responses: Any) -> Any:
            if prompt == "bad":
                raise ControlTokenInTextError("no way")
            return ChatEncoder(make_tokenizer()).encode(prompt, responses)

        def check(self, *_: Any, row: str) -> None:
            pass

    tokenized = tokenize_rows([TextRow("a", "bad", ("x",)), TextRow("b", "hi", ("x",))], Unable(), params())
    reason = "control token as text, which the tokenizer cannot encode"
    assert [row.row_id for row in tokenized.rows] == ["b"]
    assert (dict(tokenized.dropped), dict(tokenized.changed), tokenized.first_changed) == (
        {reason: 1},
        {reason: 1},
        "a",
    )


def test_an_empty_response_is_dropped_also_if_the_template_opens_responses_with_a_blank() -> None:
    spaced = make_tokenizer(
        template=CHATML.replace("assistant\\n' }}{% endif", "assistant' }}{% endif").replace("+ '\\n' + m", "+ ' ' + m")
    )
    tokenized = tokenize(TextRow("a", "why", ("x", "")), TextRow("b", "why", ("x", "y")), tokenizer=spaced)
    assert ([row.row_id for row in tokenized.rows], dict(tokenized.dropped)) == (["b"], {"empty response": 1})
    assert [spaced.decode(ids) for ids in tokenized.rows[0].responses] == [" x<|im_end|>", " y<|im_end|>"]
