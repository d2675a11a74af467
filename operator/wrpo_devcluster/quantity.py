"""Kubernetes quantities: values and canonical form (`1000m` is `1`, `1024Mi` is `1Gi`)."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache

_FORM = re.compile(r"^([+-]?[0-9.]+)([eE][+-]?[0-9]+|[KMGTPE]i|[numkMGTPE]|)$")
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse(text: str | float) -> Decimal:
    """Return the value of a quantity; raise ValueError for any other text."""
    return _parse(str(text))


@lru_cache(maxsize=1024)
def _parse(text: str) -> Decimal:
    match = _FORM.match(text)
    if match is None:
        raise ValueError("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    try:
        number: Decimal = Decimal(match.group(1))
    except InvalidOperation as problem:
        raise ValueError(f"unable to parse quantity's numeric part {match.group(1)!r}") from problem
    suffix = match.group(2)
    if suffix in _BINARY:
        return number * Decimal(2 ** _BINARY[suffix])
    if suffix in _DECIMAL:
        return number.scaleb(_DECIMAL[suffix])
    return number.scaleb(int(suffix[1:]))


def canonical(text: str | float) -> str:
    """Return the form that a real server stores and returns."""
    match = _FORM.match(str(text))
    value = parse(text)
    if value == 0:
        return "0"
    if match is not None and match.group(2) in _BINARY and value == value.to_integral_value():
        return _binary(int(value))
    if match is not None and match.group(2)[:1] in {"e", "E"} and len(match.group(2)) > 1:
        return _exponent(value)
    return _decimal(value)


def _binary(value: int) -> str:
    if abs(value) < 1024:
        return str(value)
    for suffix, power in sorted(_BINARY.items(), key=lambda item: -item[1]):
        if value % (1 << power) == 0:
            return f"{value >> power}{suffix}"
    return str(value)


def _scaled(value: Decimal) -> tuple[int, int]:
    for power in range(18, -12, -3):
        scaled = value.scaleb(-power)
        if scaled == scaled.to_integral_value():
            return int(scaled), power
    return int(value.scaleb(9).to_integral_value(rounding="ROUND_UP")), -9


def _decimal(value: Decimal) -> str:
    number, power = _scaled(value)
    suffix = next(name for name, exponent in _DECIMAL.items() if exponent == power)
    return f"{number}{suffix}"


def _exponent(value: Decimal) -> str:
    number, power = _scaled(value)
    return f"{number}e{power}" if power else str(number)
