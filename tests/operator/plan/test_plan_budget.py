"""Which stages start within the limits of accelerators."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_operator.plan.budget import Demand, Limits, admitted
from wrpo_operator.plan.model import StageId

GROUPS = ("h100", "l40s", "")
TOTALS = {"h100": 16, "l40s": 4}


def demand(name: str, accelerators: int, group: str = "h100") -> Demand:
    return Demand(StageId("sample", name), accelerators, group)


def names(stages: frozenset[StageId]) -> str:
    return "".join(sorted(stage.name for stage in stages))


CASES: dict[str, tuple[list[Demand], list[Demand], Limits, str]] = {
    "without limits everything starts": (
        [demand("a", 8), demand("b", 64)], [demand("r", 100)], Limits(), "ab"),
    "the largest start first": (
        [demand("a", 1), demand("b", 8), demand("c", 8), demand("d", 1)], [], Limits(most=16), "bc"),
    "equal ones start in their order": (
        [demand("a", 8), demand("b", 8), demand("c", 8)], [], Limits(most=16), "ab"),
    "a larger one starts before a more urgent one": (
        [demand("a", 1), demand("b", 16)], [], Limits(most=16), "b"),
    "what runs counts": (
        [demand("a", 8), demand("b", 1)], [demand("r", 8)], Limits(most=16), "a"),
    "free ones are kept for the largest": (
        [demand("a", 8), demand("b", 1)], [demand("r", 12)], Limits(most=16), ""),
    "stages without accelerators never wait": (
        [demand("a", 8), demand("b", 0)], [demand("r", 16)], Limits(most=16), "b"),
    "another group is not kept for it": (
        [demand("a", 8), demand("b", 1, "l40s")], [demand("r", 12)], Limits(totals=TOTALS), "b"),
    "the limit of all groups keeps all of them": (
        [demand("a", 8), demand("b", 1, "l40s")], [demand("r", 12)], Limits(most=16, totals=TOTALS), ""),
    "one that never fits holds back no other": (
        [demand("a", 32), demand("b", 1)], [], Limits(most=16), "b"),
    "one larger than its group runs alone": (
        [demand("a", 32), demand("b", 1)], [], Limits(totals=TOTALS), "a"),
    "one larger than its group waits for the others": (
        [demand("a", 32), demand("b", 1)], [demand("r", 1)], Limits(totals=TOTALS), ""),
    "an unknown group has no total": (
        [demand("a", 32, "")], [demand("r", 16)], Limits(totals=TOTALS), "a"),
}  # fmt: skip


@pytest.mark.parametrize(("waiting", "running", "limits", "starting"), CASES.values(), ids=CASES.keys())
def test_the_stages_that_start(waiting: list[Demand], running: list[Demand], limits: Limits, starting: str) -> None:
    assert names(admitted(waiting, running, limits)) == starting


AMOUNTS = st.sampled_from([0, 1, 1, 2, 4, 8, 16])


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    """Stages that each fit into their group."""
    found = []
    for number in range(draw(st.integers(0, 12))):
        group = draw(st.sampled_from(GROUPS))
        found.append(demand(str(number), min(draw(AMOUNTS), TOTALS.get(group, 16)), group))
    return found


@given(demands(), st.none() | st.integers(1, 24), st.data())
def test_the_limits_hold_nothing_idles_and_all_stages_have_their_turn(
    stages: list[Demand], most: int | None, data: st.DataObject
) -> None:
    """Let stages end in any order, one at a time, until none is left."""
    limits = Limits(most=most, totals=TOTALS)
    waiting = [stage for stage in stages if not limits.never_admits(stage)]
    running: list[Demand] = []
    for _ in range(2 * len(stages) + 1):
        starting = admitted(waiting, running, limits)
        running += [stage for stage in waiting if stage.stage in starting]
        waiting = [stage for stage in waiting if stage.stage not in starting]
        used = {group: sum(stage.accelerators for stage in running if stage.group == group) for group in GROUPS}
        assert all(used[group] <= total for group, total in TOTALS.items())
        assert most is None or sum(used.values()) <= most
        assert admitted(waiting, running, limits) == frozenset(), "a second look starts more"
        for stage in waiting:
            fits = used[stage.group] + stage.accelerators <= TOTALS.get(stage.group, 10**9)
            if fits and (most is None or sum(used.values()) + stage.accelerators <= most):
                larger = [other for other in waiting if other.accelerators >= stage.accelerators and other != stage]
                assert any(most is not None or other.group == stage.group for other in larger), "accelerators idle"
        if not running:
            break
        running.pop(data.draw(st.integers(0, len(running) - 1)))
    assert not waiting
