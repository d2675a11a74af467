"""Prompts that occur in two of the sets that must not share any: SFT, preference, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import polars as pl

from wrpo_engine.formats.prompt_columns import whole_prompt
from wrpo_engine.linting.findings import Example, Finding, Limits, Severity, finding, shorten
from wrpo_engine.linting.minhash import near_pairs
from wrpo_engine.linting.normalise import normalised

EVALUATION = "evaluation"


def check_leakage(sets: Mapping[str, pl.DataFrame], limits: Limits) -> list[Finding]:
    """Compare every two sets (row, prompt_id, prompt, perhaps history): equal prompts first, then near duplicates.

    Prompts are compared with their histories. Near duplicates are looked for among those that are not equal.
    A prompt that is evaluated and trained on is an error; one in both training parts a warning.
    """
    found: list[Finding] = []
    words = {name: _unique(rows) for name, rows in sets.items() if rows.height}
    for first, second in combinations(sorted(words, key=lambda name: (name == EVALUATION, name)), 2):
        found += _compare(first, words[first], second, words[second], limits)
    return found


def _unique(rows: pl.DataFrame) -> pl.DataFrame:
    marked = rows.select("row", "prompt_id", "prompt", words=normalised(whole_prompt(rows.columns)))
    return marked.filter(pl.col("words").is_not_null()).unique("words", keep="first", maintain_order=True)


def _compare(first: str, left: pl.DataFrame, second: str, right: pl.DataFrame, limits: Limits) -> list[Finding]:
    evaluated = second == EVALUATION
    shared = left.join(right.select("words"), on="words", how="semi", maintain_order="left")
    consequence = "the evaluation measures what was trained on" if evaluated else "they are trained on twice"
    found = finding(
        shared,
        f"leakage-{second}",
        Severity.ERROR if evaluated else Severity.WARNING,
        f"{first} prompts are also {second} prompts (case, punctuation and blanks aside): {consequence}",
        limits.shown("prompt"),
    )
    rest = left.join(shared.select("words"), on="words", how="anti", maintain_order="left")
    others = right.join(shared.select("words"), on="words", how="anti", maintain_order="left")
    if not rest.height or not others.height:
        return found
    near = near_pairs(rest["words"], others["words"], threshold=limits.near)
    if len(near.left):
        pairs = pl.DataFrame({"left": near.left, "right": near.right, "similarity": near.similarity})
        closest = pairs.sort(["similarity", "left", "right"], descending=[True, False, False])
        examples = [
            Example(
                row=rest["row"][row["left"]],
                prompt_id=rest["prompt_id"][row["left"]],
                column="prompt",
                text=f"{row['similarity']:.2f} like row {others['row'][row['right']]} of {second}: "
                f"{shorten(rest['prompt'][row['left']])}",
            )
            for row in closest.unique("left", keep="first", maintain_order=True)
            .head(limits.max_examples)
            .iter_rows(named=True)
        ]
        found.append(
            Finding(
                rule=f"near-leakage-{second}",
                severity=Severity.WARNING if evaluated else Severity.INFO,
                count=pairs["left"].n_unique(),
                message=f"{first} prompts are nearly {second} prompts: {limits.near:g} or more of their word trigrams "
                "are the same",
                examples=examples,
            )
        )
    if not near.is_complete:
        found.append(
            Finding(
                rule="near-leakage-bounded",
                severity=Severity.INFO,
                count=0,
                message=f"{first} and {second} share so many phrases that not every pair was looked at",
            )
        )
    return found
