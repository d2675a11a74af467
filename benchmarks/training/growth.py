"""How time and memory of a step grow with triples, prompt, response and number of responses.

`python -m benchmarks.training.growth [--quick | --full]`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.common.results import Table
from benchmarks.training.cases import Effort, growth
from benchmarks.training.command import OURS, PADDED, Setting, compare, comparison_table, run_command
from benchmarks.training.measure import measure

NAME = "training-growth"


def act(setting: Setting) -> Mapping[str, Any]:
    cases = growth(setting.level)
    effort: Effort = replace(setting.effort, rounds=1)
    figures = measure(cases, setting.sides(OURS, PADDED), effort, memory=True)
    return {"triples": compare(cases, figures, setting, [PADDED])}


def tables(figures: Mapping[str, Any]) -> list[Table]:
    title = "Cost of a step as one thing grows (else 2 triples, prompt 256, 3 responses of 128)"
    return [comparison_table(title, figures["triples"])]


if __name__ == "__main__":
    run_command(NAME, __doc__ or "", act, tables)
