"""What `make mutation` changes in a module, and what it leaves alone."""

from __future__ import annotations

import tomllib

import pytest

from scripts.mutants import mutants_of, replaced
from scripts.mutation import ROOT, TABLE, Table

CHANGES = {
    "comparisons move by one place": ("a <= b < c", ["a < b < c", "a <= b <= c"]),
    "comparisons are negated": ("a not in b", ["a in b"]),
    "arithmetic": ("x = a // b + 2", ["x = a / b + 2", "x = a // b + 3", "x = a // b - 2"]),
    "an operator in place": ("a.b //= c", ["a.b /= c"]),
    "booleans": ("x = a and b and True", ["x = a and b and False", "x = a and b or True", "x = a or b and True"]),
    "signs and negations are dropped": ("f = not -a", ["f = -a", "f = not a"]),
    "conditions, also of comprehensions": ("x = [a for a in b if a]", ["x = [a for a in b if not (a)]"]),
    "choices": ("x = a if b else c", ["x = a if not (b) else c"]),
    "functions with an opposite": ("x = math.ceil(max(a))", ["x = math.ceil(min(a))", "x = math.floor(max(a))"]),
    "calls whose result is not used": ("f(g)", ["pass"]),
    "a raise, but nothing within it": ("raise ValueError(1 + x)", ["pass"]),
    "what is returned": ("def f(): return a", ["def f(): return None"]),
    "the ways out of a loop": ("while a: break", ["while a: continue", "while not (a): break"]),
    "texts before it in other alphabets": ("x = 'äß', a < b", ["x = 'äß', a <= b"]),
    "texts, annotations, decorators, assertions and logs stay": (
        "@d(1)\nclass A(B[2]):\n '1'\n x: F[3] = 'a'\n def f(a: 4) -> 5:\n  assert a < 2\n  log.info(6)",
        [],
    ),
    "so does what is asserted of an iteration": ("x = zip(a, b, strict=True)", []),
}


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES)
def test_a_mutant_changes_one_place(case: tuple[str, list[str]]) -> None:
    source, expected = case
    made = mutants_of(source)
    assert sorted(mutant.of(source) for mutant in made) == sorted(expected)
    assert [mutant.now for mutant in made if mutant.line == 1] == [mutant.of(source) for mutant in made]


def test_a_change_over_several_lines_is_shown_as_one() -> None:
    source = "x = 1\nif (\n    a\n    or b\n):\n    f = 2\n"
    shown = {(mutant.line, mutant.was, mutant.now) for mutant in mutants_of(source)}
    assert (3, "a or b", "a and b") not in shown
    assert (4, "or b", "and b") in shown
    assert (3, "a or b", "not (a or b)") in shown


def test_a_passage_to_replace_by_hand_occurs_once() -> None:
    assert replaced("a = b\nc = b\n", "c = b", "c = a").of("a = b\nc = b\n") == "a = b\nc = a\n"
    with pytest.raises(ValueError, match=r"^occurs 2 times in the module, must occur once: = b$"):
        replaced("a = b\nc = b\n", "= b", "= a")


def test_an_equivalent_mutant_that_no_longer_exists_is_found() -> None:
    entry = {"module": "m.py", "was": "x = a + b", "now": "x = a - b", "why": "b is 0"}
    table = Table(minimum=95, suites=[], by_hand=[], equivalent=[entry])
    assert table.mutants("m.py", "x = a + b\n") == []
    with pytest.raises(ValueError, match=r"^mutation\.toml: no mutant of m\.py is this equivalent one: x = a \+ b$"):
        table.mutants("m.py", "x = a * b\n")


def test_the_table_matches_the_tree() -> None:
    table = Table.read(tomllib.loads(TABLE.read_text()))
    for suite in table.suites:
        for path in [*suite.modules, *(test.split("::")[0] for test in suite.tests if not test.startswith("-"))]:
            assert (ROOT / path).exists(), path
    modules = {module for suite in table.suites for module in suite.modules}
    assert {entry["module"] for entry in [*table.by_hand, *table.equivalent]} <= modules
    assert all(table.mutants(module, (ROOT / module).read_text()) is not None for module in modules)
