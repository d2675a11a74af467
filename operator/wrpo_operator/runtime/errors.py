"""Errors of the settings, and of requests to the API server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import aiohttp

from wrpo_operator.runtime.decode import UndecodableError, decode


class SettingsError(ValueError):
    """An option or variable with an invalid value."""


@dataclass(frozen=True, slots=True)
class Details:
    """What a refusal says in addition to its reason and message."""

    retry_after_s: float | None = None
    causes: frozenset[str] = frozenset()
    """Reasons of the reply's `details.causes`, e.g. NamespaceTerminating."""


class KubeError(Exception):
    """The API server refused a request, or could not be reached (`code` 0)."""

    def __init__(
        self, code: int, reason: str, message: str, *, request: str = "", details: Details | None = None
    ) -> None:
        super().__init__(f"{request}: {message}" if request else message)
        self.code = code
        self.reason = reason
        self.words = message
        """Message of the server, for users."""
        self.message = str(self)
        """The same after the request line, for logs."""
        self._details = details or Details()

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which the server accepts the request, if it says so."""
        return self._details.retry_after_s

    @property
    def causes(self) -> frozenset[str]:
        """Reasons of the causes that the server gives."""
        return self._details.causes

    @property
    def not_found(self) -> bool:
        """Whether the server replied 404."""
        return self.code == 404

    @property
    def conflict(self) -> bool:
        """Whether the server replied 409, e.g. because of a stale resourceVersion."""
        return self.code == 409

    @property
    def unreachable(self) -> bool:
        """Whether there was no reply."""
        return self.code == 0


class NoConnectionError(KubeError):
    """No kubeconfig and no in-cluster credentials, or unreadable ones."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "NoConnection", message)


def transport_error(method: str, path: str, server: str, error: Exception) -> KubeError:
    """Return the error of a request without a reply."""
    text = str(error) or type(error).__name__
    return KubeError(
        0, "Unreachable", f"the API server at {server} cannot be reached: {text}", request=f"{method} {path}"
    )


def refusal(method: str, path: str, response: aiohttp.ClientResponse, data: bytes) -> KubeError:
    """Return the message of an error reply, or its text if it is not a Status."""
    try:
        status: Any = decode(data)
    except UndecodableError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    message = status.get("message") or data[:500].decode(errors="replace") or response.reason
    after = response.headers.get("Retry-After", "")
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    return KubeError(
        response.status,
        str(status.get("reason") or response.reason or ""),
        str(message),
        request=f"{method} {path}",
        details=Details(
            retry_after_s=float(after) if after.isdecimal() else None,
            causes=frozenset(str(cause.get("reason")) for cause in causes or () if isinstance(cause, dict)),
        ),
    )
