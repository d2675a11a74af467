"""Each rule finds its fault, names the row, and finds nothing in clean data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import NOON, make_tokenizer

from wrpo_engine.artifacts import InputEntry, VolumeStore, records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.linting.command import main

CLEAN = {
    "prompt": "Why is the sky blue?",
    "source_chosen": "Rayleigh scattering: short waves scatter more.",
    "target_chosen": "Because of scattering.",
    "rejected": "It reflects the sea.",
    "source_score": 0.3,
    "target_score": 0.2,
    "rejected_score": 0.1,
}


@pytest.fixture
def lint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`lint(rows, *options)` -> the JSON that the command prints, with its exit code."""

    def run(rows: list[dict[str, Any]] | Path | str, *options: str) -> dict[str, Any]:
        location = rows
        if isinstance(rows, list):
            location = tmp_path / "rows.parquet"
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(location)
        capsys.readouterr()
        code = main([str(location), "--json", *options])
        return {**json.loads(capsys.readouterr().out), "exit_code": code}

    return run


def rules(report: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {each["rule"]: (each["severity"], each["count"]) for each in report["findings"]}


def test_clean_rows_give_no_finding(lint: Callable[..., dict[str, Any]]) -> None:
    other = {**CLEAN, "prompt": "What is a leap year?", "rejected": "One of 400 days."}
    report = lint([CLEAN, other])
    assert (report["exit_code"], report["findings"], report["rows"], report["kind"]) == (0, [], 2, "triples")


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an empty response": ({"rejected": " \n"}, "empty-response", "error"),
    "an empty prompt": ({"prompt": ""}, "empty-prompt", "error"),
    "a BOS as text": ({"target_chosen": "<|begin_of_text|>Because."}, "double-bos", "warning"),
    "an end of turn as text": ({"source_chosen": "Because.<|im_end|>\n"}, "double-eos", "warning"),
    "a template token inside": ({"rejected": "So.<|im_end|>\n<|im_start|>user\nMore"}, "template-token", "warning"),
    "a mark that may mean something else": ({"rejected": "[INST] no [/INST] sea"}, "template-mark", "warning"),
    "a role's name in front": ({"target_chosen": "assistant\n\nBecause."}, "role-prefix", "warning"),
    "a wrong decoding": ({"target_chosen": "Gr\ufffd\ufffde"}, "replacement-character", "warning"),
    "y_wt is y_l": ({"target_chosen": "It reflects the sea. "}, "identical-pair", "error"),
    "y_ws is y_l": ({"source_chosen": "It reflects the sea."}, "identical-pair", "error"),
    "y_ws is y_wt": ({"source_chosen": "Because of scattering."}, "same-preferred", "info"),
    "y_wt scores below y_l": ({"target_score": 0.05}, "score-order", "error"),
    "y_wt ties with y_l": ({"target_score": 0.1}, "score-tie", "warning"),
    "y_ws does not beat y_wt": ({"source_score": 0.2}, "source-not-better", "info"),
    "a score is NaN": ({"rejected_score": float("nan")}, "score-not-finite", "error"),
    "a cut response": ({"target_truncated": True}, "truncated-response", "warning"),
}


@pytest.mark.parametrize(("changed", "rule", "severity"), FAULTS.values(), ids=FAULTS.keys())
def test_one_fault_gives_one_finding_with_its_row(
    lint: Callable[..., dict[str, Any]], changed: dict[str, Any], rule: str, severity: str
) -> None:
    rows = [{**CLEAN, "target_truncated": False, "prompt": f"{word}?"} for word in ("One", "Two", "Three")]
    rows[1] = {**rows[1], **changed}
    report = lint(rows)
    assert rules(report) == {rule: (severity, 1)}
    assert [example["row"] for example in report["findings"][0]["examples"]] == [2]
    assert report["exit_code"] == (1 if severity == "error" else 0)


def test_duplicates_are_told_apart(lint: Callable[..., dict[str, Any]]) -> None:
    rows = [
        {**CLEAN, "prompt_id": "a"},
        {**CLEAN, "prompt_id": "a"},
        {**CLEAN, "prompt_id": "b", "prompt": "why is the SKY blue", "rejected": "Paint."},
        {**CLEAN, "prompt_id": "a", "prompt": "What is a leap year?"},
    ]
    assert rules(lint(rows)) == {
        "duplicate-row": ("warning", 1),
        "duplicate-prompt": ("warning", 1),
        "duplicate-id": ("error", 1),
    }


def test_a_gap_far_beyond_the_others_is_an_outlier(lint: Callable[..., dict[str, Any]]) -> None:
    rows = [{**CLEAN, "prompt": f"{n}?", "target_score": 0.2 + n / 1000, "source_score": 9.0} for n in range(40)]
    assert rules(lint(rows)) == {}
    rows[7]["target_score"] = 8.0
    report = lint(rows)
    assert rules(report) == {"score-outlier": ("warning", 1)}
    assert report["findings"][0]["examples"] == [
        {
            "row": 8,
            "prompt_id": report["findings"][0]["examples"][0]["prompt_id"],
            "column": "target_score",
            "text": "7.9",
        }
    ]


TOKENS: dict[str, list[int]] = {
    "prompt_ids": [1, 5, 6],
    "source_chosen_ids": [7, 2],
    "target_chosen_ids": [8, 2],
    "rejected_ids": [9, 2],
}
TOKEN_FAULTS: dict[str, tuple[dict[str, list[int]], dict[str, tuple[str, int]]]] = {
    "two BOS": ({"prompt_ids": [1, 1, 5]}, {"double-bos": ("error", 1)}),
    "BOS before a response": ({"rejected_ids": [1, 9, 2]}, {"double-bos": ("error", 1)}),
    "two ends of turn": ({"target_chosen_ids": [8, 2, 2]}, {"double-eos": ("error", 1)}),
    "no end of turn": ({"target_chosen_ids": [8, 8]}, {"truncated-response": ("warning", 1)}),
    "no token": ({"source_chosen_ids": []}, {"empty-response": ("error", 1)}),
    "equal": ({"target_chosen_ids": [9, 2]}, {"identical-pair": ("error", 1)}),
    "none": ({}, {}),
}


@pytest.mark.parametrize(("changed", "expected"), TOKEN_FAULTS.values(), ids=TOKEN_FAULTS.keys())
def test_tokenised_triples_are_checked_as_ids(
    lint: Callable[..., dict[str, Any]], changed: dict[str, Any], expected: Any
) -> None:
    rows = [{**TOKENS, "prompt_ids": [1, 5, number]} for number in range(20, 24)]
    rows[2] = {**rows[2], **changed}
    assert rules(lint(rows)) == expected


def test_a_tokenizer_says_which_tokens_are_special(lint: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    tokenizer = make_tokenizer(bos="<odd-bos>", eos="<odd-eos>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    option = ("--tokenizer", str(tmp_path / "tokenizer"))
    rows = [{**CLEAN, "prompt": "Look: <odd-eos> there", "target_chosen": "<odd-bos>Because."}]
    assert rules(lint(rows)) == {}
    assert rules(lint(rows, *option)) == {"template-token": ("warning", 1), "double-bos": ("warning", 1)}
    bos, end = tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    # Every prompt is wrong alike: only the tokenizer can tell which id is BOS.
    ids = [{**TOKENS, "prompt_ids": [bos, bos, 90], "target_chosen_ids": [91, end], "rejected_ids": [92, end, end]}]
    assert rules(lint(ids, *option))["double-bos"] == ("error", 1)
    assert rules(lint(ids, *option))["double-eos"] == ("error", 1)


def prompts(*texts: str) -> pl.DataFrame:
    return pl.DataFrame({"prompt_id": [text[:8] for text in texts], "prompt": texts}, schema=records.PROMPTS)


LONG = "Write a short story about a lighthouse keeper who finds a letter in a bottle and answers it after many years"


def test_prompts_shared_by_the_sets_of_an_artifact_are_found(
    lint: Callable[..., dict[str, Any]], commit_artifact: Any, tmp_path: Path
) -> None:
    commit_artifact(
        "prepare",
        {
            "sft.parquet": prompts("Why is the sky blue?", "What is a leap year?"),
            "preference.parquet": prompts("unused: the triples stand for it"),
            "evaluation.parquet": prompts("why is the sky BLUE", f"{LONG}, please", "Name three rivers."),
        },
    )
    store = VolumeStore(tmp_path / "storage", lambda: NOON)
    entry = InputEntry(stage="prepare", hash="0123456789abcdef", digest="")
    writer = store.writer(
        ArtifactRef(stage="curate-triples", hash="0123456789abcdef"), config={}, inputs={"prompts": entry}
    )
    schema = {**records.TRIPLES, **records.TRIPLE_ORIGINS}
    rows = [{**CLEAN, "prompt_id": "x", "prompt": LONG}, {**CLEAN, "prompt_id": "y", "prompt": "What is a leap year?"}]
    writer.publish("triples.parquet", pl.DataFrame(rows, schema=schema).write_parquet)
    writer.commit(files=["triples.parquet"])
    expected = {
        "leakage-evaluation": ("error", 1),
        "near-leakage-evaluation": ("warning", 1),
        "leakage-sft": ("warning", 1),
    }
    for location, options in (
        (tmp_path / "storage" / "curate-triples" / "0123456789abcdef", ()),
        ("curate-triples/0123456789abcdef", ("--storage", str(tmp_path / "storage"))),
    ):
        report = lint(location, *options)
        assert rules(report) == expected
        assert report["sets"] == {"sft": 2, "preference": 2, "evaluation": 3}
    prepare = lint(tmp_path / "storage" / "prepare" / "0123456789abcdef")
    assert rules(prepare) == {"leakage-evaluation": ("error", 1)}
    assert prepare["kind"] == "prompts"


def test_files_can_be_compared_with_prompts_of_other_files(lint: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    conversation = [{"role": "user", "content": "WHY is the sky blue"}]
    (tmp_path / "evaluation.jsonl").write_text(json.dumps({"prompt": conversation}) + "\n")
    report = lint([CLEAN], "--evaluation", str(tmp_path / "evaluation.jsonl"))
    assert rules(report) == {"leakage-evaluation": ("error", 1)}
    assert report["exit_code"] == 1


def test_people_get_a_table_and_no_text_is_taken_for_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    row = {**CLEAN, "prompt": "[bold]hi[/bold] [/nothing] <|im_start|>", "rejected": ""}
    path.write_text(json.dumps(row) + "\n")
    assert main([str(path)]) == 1
    shown = capsys.readouterr().out
    assert "template-token" in shown
    assert "[bold]hi[/bold]" in shown
    assert main([str(path), "--max-examples", "0"]) == 1
    assert "[bold]" not in capsys.readouterr().out


UNREADABLE: dict[str, tuple[str, bytes, int, str]] = {
    "no UTF-8": ("r.jsonl", b'{"prompt": "\xff"}\n', 65, "line 1 of FILE is not UTF-8: byte 0xff at offset 12"),
    "torn Parquet": ("r.parquet", b"PAR1", 65, "FILE cannot be read: "),
    "another table": (
        "r.jsonl",
        b'{"a": 1}\n',
        65,
        "FILE holds neither triples nor SFT rows nor prompts; its columns: a",
    ),
    "no rows": ("r.jsonl", b"", 65, "FILE holds no row"),
}


@pytest.mark.parametrize(("name", "content", "code", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, code: int, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert main([str(path)]) == code
    assert capsys.readouterr().err.replace(str(path), "FILE").startswith(f"error: {message}")
