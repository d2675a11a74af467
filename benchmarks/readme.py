"""Update of benchmarks/README.md with the saved results: `python -m benchmarks.readme`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.results import RESULTS, Table, load_result, machine_of, replace_section
from benchmarks.curation import __main__ as curation
from benchmarks.gpu import __main__ as gpu
from benchmarks.judging import __main__ as judging
from benchmarks.merging import __main__ as merging
from benchmarks.operator import scale
from benchmarks.orchestration import __main__ as orchestration
from benchmarks.ranking import __main__ as ranking
from benchmarks.sampling import __main__ as sampling
from benchmarks.scoring import __main__ as scoring
from benchmarks.statistics import __main__ as statistics
from benchmarks.training import compare, fusion, growth, scaling, vocabulary

README = Path(__file__).with_name("README.md")
PARTS: tuple[tuple[str, Callable[[Mapping[str, Any]], list[Table]]], ...] = (
    (compare.NAME, compare.tables),
    (vocabulary.NAME, vocabulary.tables),
    (scaling.NAME, scaling.tables),
    (growth.NAME, growth.tables),
    (fusion.NAME, fusion.tables),
    (sampling.NAME, sampling.tables),
    (scoring.NAME, scoring.tables),
    (judging.NAME, judging.tables),
    (ranking.NAME, ranking.tables),
    (merging.NAME, merging.tables),
    (curation.NAME, curation.tables),
    (statistics.NAME, statistics.tables),
    (scale.NAME, scale.tables),
    (orchestration.NAME, orchestration.tables),
    (gpu.NAME, gpu.tables),
)


SUFFIXES = ("", "-processor-time", "-quick", "-quick-processor-time")
"""Names of results in the order of their relevance."""


def render(readme: Path = README, results: Path = RESULTS) -> list[str]:
    """Replace the section of every part that has a result; return the parts' names."""
    rendered = []
    for name, tables in PARTS:
        found = (load_result(f"{name}{suffix}", directory=results) for suffix in SUFFIXES)
        result = next((each for each in found if each is not None), None)
        if result is None:
            continue
        how = f"; {result['level']} shapes, {result['clock']}" if "level" in result else ""
        parts = [f"Measured {machine_of(result).line}{how}.", *(table.markdown() for table in tables(result))]
        replace_section(readme, name, "\n\n".join(parts))
        rendered.append(name)
    return rendered


if __name__ == "__main__":
    print("rendered:", ", ".join(render()) or "nothing: no results under .benchmarks/")
