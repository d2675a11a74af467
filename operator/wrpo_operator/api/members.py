"""Names of systems, benchmarks and judges, and lists of systems."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field, StringConstraints

from wrpo_engine.contract.types import ATOMIC
from wrpo_operator.api.base import LABEL_PATTERN
from wrpo_operator.api.names import MAX_REWARD_NAME, MAX_SOURCE_NAME

EVERY_SOURCE = "*"
"""In a list of members: all sources."""
SystemName: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_SOURCE_NAME, pattern=LABEL_PATTERN)
]
BenchmarkName: TypeAlias = SystemName
JudgeName: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_REWARD_NAME, pattern=LABEL_PATTERN)
]
_Member = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_SOURCE_NAME, pattern=rf"^([*]|{LABEL_PATTERN[1:-1]})$")
]
Members: TypeAlias = Annotated[tuple[_Member, ...], Field(min_length=1, max_length=64, json_schema_extra=ATOMIC)]


def expanded(
    names: tuple[str, ...], sources: tuple[str, ...], without: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Return a list of members with all `sources` in the place of `*`, without the names in `without`."""
    found = (member for name in names for member in (sources if name == EVERY_SOURCE else (name,)))
    return tuple(member for member in found if member not in without)
