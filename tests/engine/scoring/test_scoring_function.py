"""A reward function of the user: called in order, and each of its faults is named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wrpo_engine.errors import ConfigError, DataError, Interrupted, TemporaryError, WrpoError
from wrpo_engine.scoring import function as module_under_test
from wrpo_engine.scoring.function import FunctionScorer

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module that can be imported; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def make(content: str) -> str:
        name = f"my_reward_{tmp_path.name.replace('-', '_')}_{len(names)}"
        (tmp_path / f"{name}.py").write_text(content)
        names.append(name)
        return name

    yield make
    for name in names:
        sys.modules.pop(name, None)


def body(expression: str) -> str:
    return f"import numpy, torch\ndef f(prompts, responses):\n    return {expression}\n"


@pytest.mark.parametrize(
    "expression",
    [
        "[len(r) for r in responses]",
        "numpy.array([len(r) for r in responses], dtype='float32')",
        "torch.tensor([float(len(r)) for r in responses])",
        "tuple(numpy.float32(len(r)) for r in responses)",
    ],
)
def test_numbers_of_every_kind_are_taken_in_order(write: Write, expression: str) -> None:
    scorer = FunctionScorer(f"{write(body(expression))}:f")
    rewards = scorer.rewards([("p", "x" * index) for index in range(5)])
    assert [reward.score for reward in rewards] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert all(type(reward.score) is float for reward in rewards)


def test_it_is_called_in_bounded_batches_and_can_be_stopped_between_them(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_under_test, "PAIRS_PER_CALL", 4)
    name = write(
        "calls = []\ndef f(prompts, responses):\n    calls.append(len(prompts))\n    return [1.0] * len(prompts)\n"
    )
    scorer = FunctionScorer(f"{name}:f")
    seen: list[int] = []
    scorer.rewards([("p", "r")] * 10, on_progress=seen.append)
    assert sys.modules[name].calls == [4, 4, 2]
    assert seen == [4, 4, 2]

    def stop(_: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        scorer.rewards([("p", "r")] * 10, on_progress=stop)
    assert sys.modules[name].calls == [4, 4, 2, 4]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("[1.0]", "returned 1 numbers for 2 pairs from row 0"),
        ("None", "returned NoneType for 2 pairs from row 0, not a list of numbers"),
        ("'12'", "returned str for 2 pairs from row 0, not a list of numbers"),
        ("{0: 1.0, 1: 2.0}", "returned dict for 2 pairs from row 0, not a list of numbers"),
        ("[1.0, '2']", "gives '2' (str) for row 1, not a number"),
        ("numpy.zeros((2, 1))", "gives [0.0] (list) for row 0, not a number"),
        ("[True, 1.0]", "gives True (bool) for row 0, not a number"),
        ("[1.0, [2.0]]", "gives [2.0] (list) for row 1, not a number"),
        ("[1.0, 1 / 0]", "raised ZeroDivisionError: division by zero for 2 pairs from row 0"),
    ],
)
def test_what_it_returns_wrongly_is_named(write: Write, expression: str, message: str) -> None:
    scorer = FunctionScorer(f"{write(body(expression))}:f")
    with pytest.raises(DataError) as error:
        scorer.rewards([("p", "a"), ("p", "b")])
    assert error.value.code == "RewardFunctionInvalid"
    assert error.value.message == f"reward function {scorer.identity} {message}"


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "-10**400"])
def test_a_number_that_is_not_finite_names_its_row(write: Write, value: str) -> None:
    scorer = FunctionScorer(f"{write(body(f'[1.0, {value}]'))}:f")
    with pytest.raises(DataError, match=r"gives (nan|inf|-inf) for second") as error:
        scorer.rewards([("p", "a"), ("p", "b")], ["first", "second"])
    assert error.value.code == "RewardNotFinite"


def test_an_async_function_is_refused(write: Write) -> None:
    name = write("async def f(prompts, responses):\n    return [1.0]\n")
    with pytest.raises(DataError, match="must be a plain function, not async"):
        FunctionScorer(f"{name}:f").rewards([("p", "a")])


def test_a_lost_connection_is_tried_again_later(write: Write) -> None:
    name = write("def f(prompts, responses):\n    raise ConnectionResetError('peer')\n")
    with pytest.raises(TemporaryError, match="ConnectionResetError: peer"):
        FunctionScorer(f"{name}:f").rewards([("p", "a")])


@pytest.mark.parametrize(
    ("content", "reference", "message"),
    [
        ("", "no_such_module_here:f", "there is no module no_such_module_here"),
        ("import absent_dependency", "{}:f", "needs absent_dependency, which is absent"),
        ("1 / 0", "{}:f", "raised ZeroDivisionError: division by zero"),
        ("", "{}:f", "f does not exist in"),
        ("f = 3", "{}:f", "f is not callable in"),
    ],
)
def test_what_cannot_be_imported_is_named(write: Write, content: str, reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        FunctionScorer(reference.format(write(content)))
    assert (error.value.field, error.value.code) == ("reward.function", "RewardFunctionInvalid")


def test_the_function_s_own_foreseen_errors_pass_through(write: Write) -> None:
    name = write("from wrpo_engine.errors import DataError\ndef f(p, r):\n    raise DataError('mine', code='Mine')\n")
    with pytest.raises(WrpoError) as error:
        FunctionScorer(f"{name}:f").rewards([("p", "a")])
    assert error.value.code == "Mine"
