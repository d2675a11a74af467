"""Quantities: values, and the form that a real server stores."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrpo_devcluster import quantity

VALUES = {"500m": "0.5", "2Gi": "2147483648", "1e3": "1000", "1E-1": "0.1", "3u": "0.000003", "1P": "1000000000000000"}


@pytest.mark.parametrize(("text", "value"), VALUES.items(), ids=VALUES.keys())
def test_a_quantity_has_the_value_of_its_suffix(text: str, value: str) -> None:
    assert quantity.parse(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "1gi", "1e", "--1", "1.2.3", "NaN"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(quantities must match the regular expression|unable to parse quantity)"):
        quantity.parse(text)


QUANTITIES = {
    "1000m": "1", "0.5": "500m", "1024Mi": "1Gi", "1536Mi": "1536Mi", "0": "0", "1e3": "1e3", "2000": "2k",
    "100Ki": "100Ki", "0.1Gi": "107374182400m", "12": "12", "1500": "1500", "0.001": "1m",
}  # fmt: skip


@pytest.mark.parametrize(("given_text", "expected"), QUANTITIES.items(), ids=QUANTITIES.keys())
def test_quantities_are_written_in_canonical_form(given_text: str, expected: str) -> None:
    assert quantity.canonical(given_text) == expected


@given(st.integers(0, 10**9), st.sampled_from(["", "m", "k", "M", "Ki", "Mi", "Gi"]))
def test_canonical_quantities_keep_their_value_and_stay(number: int, suffix: str) -> None:
    once = quantity.canonical(f"{number}{suffix}")
    assert quantity.parse(once) == quantity.parse(f"{number}{suffix}")
    assert quantity.canonical(once) == once
