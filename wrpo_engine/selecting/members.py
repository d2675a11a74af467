"""Members of a selection: systems whose answers to the same items compete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.bundles.answers import read_answers, texts_by_item
from wrpo_engine.bundles.consistency import check_answers, was_skipped
from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.contract.evaluation import SEPARATOR
from wrpo_engine.errors import ConfigError
from wrpo_engine.stage import StageContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One system's answers."""

    role: str
    name: str
    """Of the system; the role if two members have the same."""
    answers: pl.DataFrame
    """All its answers, with the columns of `records.ANSWERS`."""
    texts: dict[str, tuple[str, ...]]
    """Item id -> answers by turn, of the first sample."""
    skipped: frozenset[str]
    """Items that it could not answer in full, because their prompt exceeds its context."""


def read_members(ctx: StageContext, roles: Sequence[str], items: Sequence[BenchItem]) -> list[Member]:
    """Return the members in the order of their roles.

    Raises ConfigError if a role occurs twice, and DataError naming member and item where an answer is missing.
    """
    if repeated := sorted({role for role in roles if roles.count(role) > 1}):
        raise ConfigError("members", repeated[0], "it is named twice", "Name each member once.")
    systems = [system_of(role) for role in roles]
    names = [system if systems.count(system) == 1 else role for system, role in zip(systems, roles, strict=True)]
    return [_read(ctx, role, name, items) for role, name in zip(roles, names, strict=True)]


def system_of(role: str) -> str:
    """Return the name of the system in a role such as answers/SYSTEM--BENCHMARK."""
    return role.partition("/")[2].partition(SEPARATOR)[0] or role


def _read(ctx: StageContext, role: str, name: str, items: Sequence[BenchItem]) -> Member:
    answers = read_answers(ctx.input(role)).select(*records.ANSWERS)
    check_answers(items, answers, role=role)
    first = answers.filter(pl.col("sample_index") == 0)
    return Member(
        role=role,
        name=name,
        answers=answers,
        texts=texts_by_item(first),
        skipped=frozenset(first.filter(was_skipped())["item_id"]),
    )


def competing(members: Sequence[Member], item_id: str) -> list[int]:
    """Return the indices of the members that answered an item in full; all if none did."""
    answered = [index for index, member in enumerate(members) if item_id not in member.skipped]
    return answered or list(range(len(members)))
