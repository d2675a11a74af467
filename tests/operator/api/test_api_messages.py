"""Refusals of wrong values speak of the user's field and of what it must be, not of the library that checks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.builders import RAW_SPEC

from wrpo_operator.api.crd import schema
from wrpo_operator.api.parsing import SpecError, parse_spec

FOREIGN = re.compile(
    r"pydantic|Input should|(String|Tuple|List|Dictionary|Value) should|after validation|constrained|\bunion\b|_error"
    r"|NoneType|function-",
    re.IGNORECASE,
)
WRONG: tuple[Any, ...] = (None, True, -1, 0.5, "", " 1", [], [None], {}, {"": None}, 10**30)
Path = tuple[str | int, ...]


def fields(node: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    for name, child in (node.get("properties") or {}).items():
        yield (*path, name)
        yield from fields(child, (*path, name))
    if isinstance(node.get("items"), dict):
        yield (*path, 0)
        yield from fields(node["items"], (*path, 0))


def replaced(node: Any, path: Path, value: Any) -> Any:
    """Return a copy of a spec with a value at a path, whose parts are made where they are missing."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        items = node if isinstance(node, list) else []
        return [replaced(items[0] if items else None, rest, value), *items[1:]]
    known = node if isinstance(node, dict) else {}
    return {**known, first: replaced(known.get(first), rest, value)}


SPEC = schema()["properties"]["spec"]


def test_no_refusal_of_any_field_speaks_the_library_s_language() -> None:
    told: list[Any] = []
    for path in fields(SPEC):
        for value in WRONG:
            try:
                parse_spec(replaced(RAW_SPEC, path, value))
            except SpecError as error:
                told += error.errors
    assert len(told) > 1000
    assert [text for text in told if FOREIGN.search(text)] == []
    assert [text for text in told if not text.startswith("spec")] == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((("target", "model"), 7), "spec.target.model is 7: it must be a valid string."),
        ((("training", "zeroStage"), 9), "spec.training.zeroStage is 9: it must be 0, 1, 2 or 3."),
        ((("sources",), []), "spec.sources is []: it must have at least 1 item, not 0."),
    ],
)
def test_a_refusal_says_what_the_value_must_be(change: tuple[Path, Any], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(replaced(RAW_SPEC, *change))
    assert caught.value.errors == (told,)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://user:s3cret@judge.example.org/v1",
        "https://s3cret@judge.example.org/v1",
        "https://user:s3cret/s3cret@judge.example.org/v1",
        "https://user:s3cret s3cret@judge.example.org/v1",
        'https://user:s3cret"s3cret@judge.example.org/v1',
        "https://user:s3cret@s3cret@judge.example.org/v1",
        "user:s3cret@judge.example.org/v1",
    ],
)
@pytest.mark.parametrize("field", ["evaluation.judges[0].endpoint", "reward.endpoint"])
def test_a_refused_url_is_shown_without_what_precedes_its_host(field: str, endpoint: str) -> None:
    parts = {"evaluation": {"judges": [{"name": "gpt", "model": "gpt", "endpoint": endpoint}]}}
    changes = parts if field.startswith("evaluation") else {"reward": {"endpoint": endpoint}}
    with pytest.raises(SpecError) as refused:
        parse_spec({**RAW_SPEC, **changes})
    (shown,) = [message for message in refused.value.errors if message.startswith(f"spec.{field} is ")]
    assert "@judge.example.org/v1" in shown
    assert "s3cret" not in " ".join(refused.value.errors)


def test_a_value_with_an_at_sign_that_is_no_url_is_shown() -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec({**RAW_SPEC, "target": {"model": "org/model", "revision": "main @ 1"}})
    assert 'spec.target.revision is "main @ 1": ' in " ".join(refused.value.errors)
