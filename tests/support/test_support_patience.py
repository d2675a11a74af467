"""The waits of all tests: long enough for a slow machine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.patience import pause_s, wait_until

TESTS = Path(__file__).resolve().parents[1]
WAITS = frozenset({"communicate", "join", "result", "run", "timeout", "wait", "wait_for", "wait_for_condition"})
POLL_S, SHORT_S = 1.0, 60.0
"""Below a second it is the pause of a loop, or a wait for what must not happen."""


def short_waits(source: str) -> Iterator[int]:
    """Return the lines that end a wait after a second or more but less than a minute."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in WAITS:
            continue
        limits = [
            *(node.args[:1] if name != "run" else ()),
            *(word.value for word in node.keywords if word.arg in {"timeout", "timeout_s"}),
        ]
        numbers = [limit.value for limit in limits if isinstance(limit, ast.Constant)]
        if any(isinstance(number, int | float) and POLL_S <= number < SHORT_S for number in numbers):
            yield node.lineno


def test_no_test_ends_a_wait_within_a_minute() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in short_waits(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "a busy machine is slower: use LIMIT_S of support.patience"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("process.wait(30)", [1]),
        ("subprocess.run(command, timeout=59)", [1]),
        ("\nasync with asyncio.timeout(5): pass", [2]),
        ("wait_for_condition(kubectl, 'Ready', timeout_s=30)", [1]),
        ("process.wait(LIMIT_S)", []),
        ("while not stop.wait(0.01): pass", []),
        ("', '.join(parts)", []),
        ("queue.run(2)", []),
        ("subprocess.run(command, timeout=300)", []),
    ],
)
def test_a_short_wait_is_found_by_its_limit(source: str, lines: list[int]) -> None:
    assert list(short_waits(source)) == lines


def test_a_wait_returns_the_first_true_value() -> None:
    values = iter(["", 0, "there", "later"])
    assert wait_until("it is there", lambda: next(values), every_s=0) == "there"


def test_a_wait_that_is_too_long_says_what_was_waited_for() -> None:
    with pytest.raises(AssertionError, match=r"^the pod runs: not within 0 s$"):
        wait_until("the pod runs", lambda: False, timeout_s=0)


def test_pauses_grow_with_the_time_waited_within_bounds() -> None:
    assert [pause_s(waited_s) for waited_s in (0.0, 1.0, 5.0, 10.0, 300.0)] == [0.1, 0.1, 0.5, 1.0, 1.0]
