"""String formats that a real server checks in custom resources. Any other format has no effect."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import date, timedelta

from wrpo_devcluster import quantity
from wrpo_devcluster.apiserver.values import go_regex
from wrpo_devcluster.apiserver.values.go_url import UrlError, parse_request_uri

_UUID = r"(?i)[0-9a-f]{{8}}-?[0-9a-f]{{4}}-?{}[0-9a-f]{{3}}-?{}[0-9a-f]{{3}}-?[0-9a-f]{{12}}"
_ANY, _VARIANT = "[0-9a-f]", "[89ab]"
_NAME_CHARACTERS = r"a-zA-Z0-9\p{S}\p{L}"
_HOSTNAME = r"^([@]((-?[@]{0,62})?)|([@](([@-]{0,61}[@])?)(\.)){1,}([@])(-?[@]){1,62})$".replace("@", _NAME_CHARACTERS)
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_ATOM = r"[^\s()<>\[\]:;@\\,.\"\x00-\x1f]+"
_ADDRESS = rf"(?:{_ATOM}(?:\.{_ATOM})*|\"(?:[^\"\\\n]|\\.)*\")@(?:{_ATOM}(?:\.{_ATOM})*|\[[^\[\]\\\s]*\])"
_WORD = rf"(?:{_ATOM}|\"(?:[^\"\\\n]|\\.)*\")"
_DISPLAYED = rf"\s*(?:{_ADDRESS}|(?:{_WORD}(?:[\s.]+{_WORD})*\s*)?<{_ADDRESS}>)\s*"
_CARD = (
    "4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}"
    "|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11}"
)
_BYTE_VALUE = "([01]?[0-9]{1,2}|2[0-4][0-9]|25[0-5])"
_GO_UNITS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_GO_DURATION = re.compile(r"([0-9]*)(\.[0-9]*)?(ns|us|µs|μs|ms|s|m|h)")
_UNITS = (
    (("ns",), "nano", 1), (("us", "µs"), "micro", 10**3), (("ms",), "milli", 10**6), (("s",), "sec", 10**9),
    (("m",), "min", 60 * 10**9), (("h", "hr"), "hour", 3600 * 10**9), (("d",), "day", 86400 * 10**9),
    (("w", "wk"), "week", 7 * 86400 * 10**9),
)  # fmt: skip
"""Short names, how a long name begins, nanoseconds."""


def _fully(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(rf"(?:{pattern})\Z" if not pattern.startswith("(?i)") else rf"(?i)(?:{pattern[4:]})\Z")
    return lambda text: compiled.match(text) is not None


def is_ip(text: str) -> bool:
    """Return whether a text is an IP address without a zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def is_cidr(text: str) -> bool:
    """Return whether a text is an IP address with a prefix length."""
    address, slash, length = text.partition("/")
    if not slash or not is_ip(address) or re.fullmatch("[0-9]+", length) is None:
        return False
    return int(length) <= (128 if ":" in address else 32)


def is_date(text: str) -> bool:
    """Return whether a text is a full date (RFC 3339), of the year 0 too."""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII) is None:
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return text.startswith("0000-") and is_date(f"0004{text[4:]}")
    return True


def is_datetime(text: str) -> bool:
    """Return whether a text is a date, a `t` and a time with a zone. Seconds end at 59."""
    parts = text.lower().split("t")
    if len(parts) < 2 or not is_date(parts[0]):
        return False
    match = re.match(r"([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|[+-][0-9]{2}:[0-9]{2})\Z", parts[1])
    return match is not None and match[1] <= "23" and match[2] <= "59" and match[3] <= "59"


def _go_duration(text: str) -> int | None:
    rest = text.lstrip("+-") if text[:1] in {"+", "-"} and text[1:2] not in {"+", "-"} else text
    if rest == "0":
        return 0
    total, at = 0.0, 0
    while at < len(rest):
        match = _GO_DURATION.match(rest, at)
        if match is None or not (match[1] or (match[2] or "").strip(".")):
            return None
        total += float(f"{match[1] or 0}{match[2] or ''}" if match[2] != "." else match[1]) * _GO_UNITS[match[3]]
        at = match.end()
    return None if not rest or total >= 2**63 else round(total) * (-1 if text[0] == "-" else 1)


def parse_duration(text: str) -> timedelta | None:
    """Parse a duration as Go does (`1h30m`), or in words (`3 days`); None for anything else."""
    found = _go_duration(text)
    if found is not None:
        return timedelta(microseconds=found / 1000)
    if re.match(r"\s*(?:[0-9]+\s*[A-Za-zµ]+\s*)+\Z", text) is None:
        return None
    total, is_known = 0, False
    for number, unit in re.findall(r"([0-9]+)\s*([A-Za-zµ]+)", text):
        for short, long, size in _UNITS:
            if unit.lower() in short or unit.lower().startswith(long):
                total, is_known = total + int(number) * size, True
    return timedelta(microseconds=total / 1000) if is_known else None


def _is_mac(text: str) -> bool:
    for separator in (":", "-"):
        groups = text.split(separator)
        if len(groups) in {6, 8, 20} and all(re.fullmatch("[0-9a-fA-F]{2}", one) for one in groups):
            return True
    groups = text.split(".")
    return len(groups) in {3, 4, 10} and all(re.fullmatch("[0-9a-fA-F]{4}", one) for one in groups)


def _is_isbn10(text: str) -> bool:
    digits = re.sub(r"[\s-]+", "", text)
    if re.fullmatch(r"[0-9]{9}[0-9X]", digits) is None:
        return False
    return sum((index + 1) * (10 if one == "X" else int(one)) for index, one in enumerate(digits)) % 11 == 0


def _is_isbn13(text: str) -> bool:
    digits = re.sub(r"[\s-]+", "", text)
    if re.fullmatch("[0-9]{13}", digits) is None:
        return False
    return sum((3 if index % 2 else 1) * int(one) for index, one in enumerate(digits)) % 10 == 0


def _is_card(text: str) -> bool:
    digits = re.sub("[^0-9]+", "", text)
    if re.fullmatch(_CARD, digits) is None:
        return False
    doubled = [int(one) * (1 + index % 2) for index, one in enumerate(reversed(digits))]
    return sum(one - 9 if one > 9 else one for one in doubled) % 10 == 0


def is_uri(text: str) -> bool:
    """Return whether Go's `url.ParseRequestURI` reads a text."""
    try:
        parse_request_uri(text)
    except UrlError:
        return False
    return True


def is_quantity(text: str) -> bool:
    """Return whether a text is a Kubernetes quantity, e.g. `500m`."""
    try:
        quantity.parse(text)
    except ValueError:
        return False
    return True


def _is_hostname(text: str) -> bool:
    is_named = go_regex.matches(_HOSTNAME, text)
    return is_named and len(text.encode()) <= 255 and all(len(part.encode()) <= 63 for part in text.split("."))


_CHECKS: dict[str, Callable[[str], bool]] = {
    "bsonobjectid": _fully("[0-9a-fA-F]{24}"),
    "uri": is_uri,
    "email": _fully(_DISPLAYED),
    "hostname": _is_hostname,
    "ipv4": lambda text: is_ip(text) and "." in text,
    "ipv6": lambda text: is_ip(text) and ":" in text,
    "cidr": is_cidr,
    "mac": _is_mac,
    "uuid": _fully(_UUID.format(_ANY, _ANY)),
    "uuid3": _fully(_UUID.format("3", _ANY)),
    "uuid4": _fully(_UUID.format("4", _VARIANT)),
    "uuid5": _fully(_UUID.format("5", _VARIANT)),
    "isbn": lambda text: _is_isbn10(text) or _is_isbn13(text),
    "isbn10": _is_isbn10,
    "isbn13": _is_isbn13,
    "creditcard": _is_card,
    "ssn": _fully(r"[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}"),
    "hexcolor": _fully("#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})"),
    "rgbcolor": _fully(rf"rgb\(\s*{_BYTE_VALUE}\s*,\s*{_BYTE_VALUE}\s*,\s*{_BYTE_VALUE}\s*\)"),
    "byte": _fully("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})"),
    "password": lambda _text: True,
    "date": is_date,
    "datetime": is_datetime,
    "duration": lambda text: parse_duration(text) is not None,
    "quantity": is_quantity,
    "k8sshortname": lambda text: len(text.encode()) <= 63 and _fully(_LABEL)(text),
    "k8slongname": lambda text: len(text.encode()) <= 253 and _fully(rf"{_LABEL}(\.{_LABEL})*")(text),
}
_NUMBER_FORMATS = {"integer": ("int32", "int64"), "number": ("float", "double")}


def effective(raw_type: str, name: str) -> str:
    """Return the format if a server of this version checks it for values of this type, else an empty text."""
    if raw_type in _NUMBER_FORMATS:
        return name if name in _NUMBER_FORMATS[raw_type] else ""
    return name if raw_type in {"", "string"} and name.replace("-", "") in _CHECKS else ""


def fits(name: str, text: str) -> bool:
    """Return whether a string has this format. `name` is one that has an effect."""
    return _CHECKS[name.replace("-", "")](text)
