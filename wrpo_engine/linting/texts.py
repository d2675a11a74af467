"""Checks of prompts and responses as texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from wrpo_engine.formats.prompt_columns import whole_prompt
from wrpo_engine.linting.findings import Finding, Limits, Severity, finding
from wrpo_engine.linting.normalise import normalised

BOS = ("<|begin_of_text|>", "<s>", "<bos>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>")
EOS = (
    "<|eot_id|>",
    "<|im_end|>",
    "</s>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "<|end|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5cUser\uff5c>",
    "<\uff5cAssistant\uff5c>",
)
AMBIGUOUS = ("<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
"""Marks of chat templates that also mean something else, for example HTML's strike-through."""
_ROLE = r"^\s*(?i:assistant|user|system|model|human|gpt)[ \t]*(:|\r?\n)"
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The special tokens that are looked for in texts. They are encoded as text, but usually come from a template."""

    bos: Sequence[str] = BOS
    eos: Sequence[str] = EOS
    control: Sequence[str] = CONTROL
    ambiguous: Sequence[str] = AMBIGUOUS


def check_texts(table: pl.DataFrame, responses: Sequence[str], marks: Marks, limits: Limits) -> list[Finding]:
    """Check every text column of a table with `row`, `prompt` and these responses; null texts are skipped."""
    findings: list[Finding] = []
    for column in ["prompt", *responses]:
        rows = table.filter(pl.col(column).is_not_null())
        findings += _one_column(rows, column, marks, limits)
    for column in responses:
        flag = f"{column.removesuffix('_chosen')}_truncated"
        if flag in table.columns:
            cut = table.filter(pl.col(flag).fill_null(value=False))
            message = f"{column} was cut at the token limit; curation.dropTruncated leaves such responses out"
            findings += finding(cut, "truncated-response", Severity.WARNING, message, limits.shown(column))
    return findings


def _one_column(rows: pl.DataFrame, column: str, marks: Marks, limits: Limits) -> list[Finding]:
    text = pl.col(column)
    is_prompt = column == "prompt"
    begins = text.str.strip_chars_start()
    ends = text.str.strip_chars_end()
    empty = text.str.strip_chars() == ""
    double_bos = pl.any_horizontal(begins.str.starts_with(mark) for mark in marks.bos)
    double_eos = pl.any_horizontal(ends.str.ends_with(mark) for mark in marks.eos)
    marked = rows.with_columns(
        empty.alias("_empty"),
        double_bos.alias("_bos"),
        double_eos.alias("_eos"),
        text.str.contains_any(list(marks.control)).alias("_control"),
        text.str.contains_any(list(marks.ambiguous)).alias("_ambiguous"),
        text.str.contains(_REPLACEMENT, literal=True).alias("_replacement"),
        (pl.lit(value=False) if is_prompt else text.str.contains(_ROLE)).alias("_role"),
    )
    seen = pl.col("_bos") | pl.col("_eos")
    name = "empty-prompt" if is_prompt else "empty-response"
    checks = [
        (pl.col("_empty"), name, Severity.ERROR, f"{column} is empty"),
        (
            pl.col("_bos"),
            "double-bos",
            Severity.WARNING,
            f"{column} begins with a BOS token as text, as a template leaves; it is encoded as text",
        ),
        (
            pl.col("_eos"),
            "double-eos",
            Severity.WARNING,
            f"{column} ends with an end-of-turn token as text, as a template leaves; it is encoded as text",
        ),
        (
            pl.col("_control") & ~seen,
            "template-token",
            Severity.WARNING,
            f"{column} holds chat-template tokens as text; they are encoded as text and open or end no turn",
        ),
        (
            pl.col("_ambiguous") & ~pl.col("_control") & ~seen,
            "template-mark",
            Severity.WARNING,
            f"{column} holds what may be marks of another chat template",
        ),
        (pl.col("_role"), "role-prefix", Severity.WARNING, f"{column} begins with a role's name, as a template leaves"),
        (
            pl.col("_replacement"),
            "replacement-character",
            Severity.WARNING,
            f"{column} holds U+FFFD: it was decoded wrongly once",
        ),
    ]
    findings: list[Finding] = []
    for mask, rule, severity, message in checks:
        findings += finding(marked.filter(mask), rule, severity, message, limits.shown(column))
    return findings


def check_duplicates(table: pl.DataFrame, responses: Sequence[str], limits: Limits) -> list[Finding]:
    """Find ids, prompts and whole rows that occur more than once; the first one is not counted."""
    prompt = whole_prompt(table.columns)
    whole = ~pl.struct(prompt, *responses).is_first_distinct()
    marked = table.with_columns(
        whole.alias("_whole"),
        (~normalised(prompt).is_first_distinct()).alias("_prompt"),
        (~pl.col("prompt_id").is_first_distinct() & pl.col("prompt_id").is_not_null()).alias("_id"),
    )
    rows_message = "the whole row equals an earlier one; curation.dropDuplicates drops such rows"
    found = finding(
        marked.filter(pl.col("_whole")), "duplicate-row", Severity.WARNING, rows_message, limits.shown("prompt")
    )
    found += finding(
        marked.filter(pl.col("_prompt") & ~pl.col("_whole")),
        "duplicate-prompt",
        Severity.WARNING,
        "an earlier row has the same prompt (case, punctuation and blanks aside)",
        limits.shown("prompt"),
    )
    found += finding(
        marked.filter(pl.col("_id") & ~pl.col("_whole") & ~pl.col("_prompt")),
        "duplicate-id",
        Severity.ERROR,
        "an earlier row has the same prompt_id, but another prompt",
        limits.shown("prompt_id"),
    )
    return found


def check_pairs(table: pl.DataFrame, limits: Limits) -> list[Finding]:
    """Find rows whose preferred response is the rejected one: nothing can be learnt from them."""
    found: list[Finding] = []
    rejected = pl.col("rejected").str.strip_chars()
    for column in ("source_chosen", "target_chosen"):
        same = table.filter(pl.col(column).str.strip_chars() == rejected)
        message = f"{column} and rejected are the same text"
        found += finding(same, "identical-pair", Severity.ERROR, message, limits.shown(column))
    both = table.filter(pl.col("source_chosen").str.strip_chars() == pl.col("target_chosen").str.strip_chars())
    message = "source_chosen and target_chosen are the same text: alpha has no effect on such a row"
    return found + finding(both, "same-preferred", Severity.INFO, message, limits.shown("source_chosen"))
