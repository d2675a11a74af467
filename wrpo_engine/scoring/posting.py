"""POST of JSON to one server, as rewards and judges need it.

Connections are reused, redirects are not followed, the key never appears in a text, and a reply has a largest size.
"""

from __future__ import annotations

import math
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import urllib3

from wrpo_engine.errors import ConfigError

MAX_REPLY_BYTES = 16 << 20
MAX_SHOWN = 300
"""Characters of a reply that messages show."""
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""
_MASK = "***"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass
class HttpFailure(Exception):  # noqa: N818 (a reply, not yet an error)
    """A reply whose status is not 2xx."""

    status: int
    text: str
    """Body, without the key."""
    retry_after_s: float | None
    """Seconds that the server asks the client to wait."""

    def __str__(self) -> str:
        return f"HTTP {self.status} {self.text[:MAX_SHOWN]}".strip()


class ReplyTooLarge(Exception):  # noqa: N818 (named by what it says)
    """A reply of more than MAX_REPLY_BYTES."""

    def __str__(self) -> str:
        return f"the reply exceeds {MAX_REPLY_BYTES >> 20} MiB"


TRANSPORT_ERRORS = (urllib3.exceptions.HTTPError, OSError)
"""Connection errors, timeouts and truncated replies."""


class Poster:
    """Sends JSON to one URL; safe to use from several threads."""

    def __init__(self, url: str, *, key: str | None, timeout_s: float, connections: int = 16) -> None:
        self.url = url
        self._key = key
        self._timeout = urllib3.Timeout(timeout_s)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._manager = _manager(url, connections)

    def post(self, body: bytes) -> bytes:
        """Return the content of a 2xx reply; raise HttpFailure, ReplyTooLarge or one of TRANSPORT_ERRORS."""
        status, headers, content = self._request("POST", self.url, body)
        if not 200 <= status < 300:
            text = self.redacted(content.decode("utf-8", "replace"))
            raise HttpFailure(status, text, retry_after(headers))
        # A server may repeat the key that it was sent.
        return content.replace(self._key.encode(), _MASK.encode()) if self._key else content

    def replies(self, url: str) -> bool:
        """Return whether a GET of a URL of the server has a reply that is not an error of the server."""
        try:
            return self._request("GET", url, None)[0] < 500
        except (ReplyTooLarge, *TRANSPORT_ERRORS):
            return False

    def _request(self, method: str, url: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        response = self._manager.request(
            method,
            url,
            body=body,
            headers=self._headers,
            timeout=self._timeout,
            redirect=False,
            retries=False,
            preload_content=False,
        )
        try:
            content = response.read(MAX_REPLY_BYTES + 1)
            if len(content) > MAX_REPLY_BYTES:
                response.close()
                raise ReplyTooLarge
            return response.status, response.headers, content
        finally:
            response.release_conn()

    def redacted(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self._key, _MASK) if self._key else text


def _manager(url: str, connections: int) -> urllib3.PoolManager:
    """Return the connections to a server, through the proxy of the environment if it names one for this server."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and parts.hostname not in _LOOPBACK and not urllib.request.proxy_bypass(parts.netloc):
        return urllib3.ProxyManager(proxy, maxsize=connections)
    return urllib3.PoolManager(maxsize=connections)


def retry_after(headers: Mapping[str, str], now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """Return the seconds that a reply asks to wait, from a number or a date; None if it does not say."""
    text = (headers.get("Retry-After") or "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now()).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def key_of(environ: Mapping[str, str], variable: str, *, code: str) -> str | None:
    """Return the key in a variable, without white space around it; None if there is none.

    Files often end with a line break, and so do keys that were put into a Secret from a file. ConfigError, which does
    not show the key, if it cannot be sent.
    """
    key = environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            variable,
            "<hidden>",
            "it has characters that no HTTP header can hold, e.g. a line break",
            "Put the text of the key alone into the Secret.",
            code=code,
        )
    return key or None


def split_endpoint(endpoint: str, *, field: str, key_variable: str, code: str) -> urllib.parse.SplitResult:
    """Return the parts of an endpoint's URL.

    ConfigError if it is no URL of a server, or holds a user or a password, which is not shown.
    """
    try:
        parts = urllib.parse.urlsplit(endpoint)
        is_server = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_server = False
    if not is_server:
        shown = endpoint.rpartition("@")[2]
        raise ConfigError(field, shown, "it names no host and port", "Write e.g. https://host:8000/v1.", code=code)
    if "@" in parts.netloc:
        raise ConfigError(
            field,
            parts.netloc.rpartition("@")[2],
            "a URL must not hold a user or a password",
            f"Give the key in {key_variable} from a Secret.",
            code=code,
        )
    return parts


def without_query(url: str) -> str:
    """Return a URL for messages: its query may hold a key."""
    return urllib.parse.urlunsplit(urllib.parse.urlsplit(url)._replace(query="", fragment=""))
