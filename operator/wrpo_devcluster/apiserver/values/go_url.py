"""Request URLs as Go's net/url parses them: absolute, or an absolute path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote


class UrlError(ValueError):
    """A text that is no such URL."""


@dataclass(frozen=True, slots=True)
class Url:
    """Parts of a URL that rules can read."""

    text: str
    scheme: str
    host: str
    """Host with the port, if there is one."""
    path: str
    """Escaped."""
    query: str

    @property
    def hostname(self) -> str:
        """The host without port and brackets."""
        return self._split()[0]

    @property
    def port(self) -> str:
        """The port; empty if the URL has none."""
        return self._split()[1]

    def _split(self) -> tuple[str, str]:
        match = re.fullmatch(r"\[(?P<v6>.*)\](?::(?P<p6>\d*))?|(?P<name>.*?)(?::(?P<port>\d*))?", self.host)
        if match is None:
            return self.host, ""
        return match["v6"] or match["name"] or "", match["p6"] or match["port"] or ""

    def values(self) -> dict[str, list[str]]:
        """Return the values of each parameter of the query."""
        return parse_qs(self.query, keep_blank_values=True)


def _fault(text: str, why: str) -> UrlError:
    return UrlError(f'parse "{text}": {why}')


def _check_escapes(text: str, part: str) -> None:
    bad = re.search(r"%(?![0-9a-fA-F]{2}).{0,2}", part)
    if bad is not None:
        raise _fault(text, f'invalid URL escape "{bad.group()}"')


def parse_request_uri(text: str) -> Url:
    """Return the parts of a URL; raise UrlError with Go's message."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise _fault(text, "net/url: invalid control character in URL")
    if not text:
        raise _fault(text, "empty url")
    if text == "*":
        return Url(text, "", "", "*", "")
    scheme, rest = _scheme(text)
    rest, _, query = rest.partition("?")
    if not rest.startswith("/"):
        if scheme:
            return Url(text, scheme, "", "", query)
        raise _fault(text, "invalid URI for request")
    host = ""
    if rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, tail = rest[2:].partition("/")
        host, rest = _host(text, authority), slash + tail
    _check_escapes(text, rest)
    path = rest if "%" in rest else quote(unquote(rest), safe="/$&+,;=:@!'()*~-._[]")
    return Url(text, scheme.lower(), host, path, query)


def _scheme(text: str) -> tuple[str, str]:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text)
    if match is not None:
        return match[1], text[match.end() :]
    if text.startswith(":"):
        raise _fault(text, "missing protocol scheme")
    return "", text


def _host(text: str, authority: str) -> str:
    user, _, host = authority.rpartition("@")
    if re.search(r"[^A-Za-z0-9\-._:~!$&'()*+,;=%@]", user):
        raise _fault(text, "net/url: invalid userinfo")
    if host.startswith("["):
        close = host.rfind("]")
        if close < 0:
            raise _fault(text, "missing ']' in host")
        port = host[close + 1 :]
    else:
        name, colon, number = host.rpartition(":")
        port = colon + number if name or colon else ""
    if port and re.fullmatch(r":\d*", port, re.ASCII) is None:
        raise _fault(text, f'invalid port "{port}" after host')
    bad = re.search(r"[\s\"<>\\^`{|}]", host)
    if bad is not None:
        raise _fault(text, f'invalid character "{bad.group()}" in host name')
    _check_escapes(text, host)
    return unquote(host)
