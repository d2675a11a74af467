"""Selectors and paging tokens: parsers as tables and as laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_devcluster.apiserver.endpoints.listing import continue_token, parse_continue
from wrpo_devcluster.apiserver.storage.selectors import SelectorError, matcher, parse_labels

LABELS = {"app": "web", "tier": "a"}
SELECTORS = {
    "empty": ("", True),
    "equality": ("app=web", True),
    "double equality": ("app==web", True),
    "inequality of a missing label": ("zone!=x", True),
    "in": ("app in (web, db)", True),
    "notin": ("app notin (web)", False),
    "exists": ("tier", True),
    "does not exist": ("!tier", False),
    "all must hold": ("app=web,tier=b", False),
    "an empty value": ("zone=", False),
}


@pytest.mark.parametrize(("text", "expected"), SELECTORS.values(), ids=SELECTORS.keys())
def test_label_selectors(text: str, expected: bool) -> None:
    assert all(part.matches(LABELS) for part in parse_labels(text)) is expected


@pytest.mark.parametrize("text", ["app in", "app in (a", "=x", "a b", "app=web,", "a=b=c", "app=!!"])
def test_bad_label_selectors_are_refused(text: str) -> None:
    with pytest.raises(SelectorError):
        parse_labels(text)


def test_field_selectors_know_only_declared_fields() -> None:
    pod = {"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": "Running"}}
    supported = frozenset({"metadata.name", "status.phase"})
    matches = matcher("", "status.phase!=Failed,metadata.name=p", supported)
    assert matches is not None
    assert matches(pod) is True
    with pytest.raises(SelectorError, match=r"field label not supported: spec\.x"):
        matcher("", "spec.x=1", supported)


@given(st.integers(1, 10**6), st.text("abc-", min_size=1, max_size=5), st.text("abc-", min_size=1), st.booleans())
def test_continue_tokens_carry_their_place(rv: int, namespace: str, name: str, is_of_all: bool) -> None:
    scope = None if is_of_all else namespace

    place = parse_continue(continue_token(rv, scope, (namespace, name)), scope)

    assert place.version == rv
    assert (namespace, name) < place.start <= (namespace, f"{name}-")


@given(st.text(max_size=20))
def test_a_made_up_continue_token_is_refused_and_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="continue"):
        parse_continue(text, None)
