"""Step time and memory with a vocabulary of 131,072 tokens, against the plain padded recipe.

`python -m benchmarks.training.vocabulary [--quick | --full]`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.common.results import Table
from benchmarks.training.cases import large_vocabulary
from benchmarks.training.command import OURS, PADDED, Setting, compare, comparison_table, run_command
from benchmarks.training.measure import measure

NAME = "training-vocabulary"


def act(setting: Setting) -> Mapping[str, Any]:
    cases = large_vocabulary(setting.level)
    effort = replace(setting.effort, timed_steps=max(1, setting.effort.timed_steps // 2))
    figures = measure(cases, setting.sides(OURS, PADDED), effort, memory=True)
    return {"triples": compare(cases, figures, setting, [PADDED])}


def tables(figures: Mapping[str, Any]) -> list[Table]:
    return [comparison_table("WRPO-DPO, vocabulary of 131,072", figures["triples"])]


if __name__ == "__main__":
    run_command(NAME, __doc__ or "", act, tables)
