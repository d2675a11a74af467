"""Replies that are not an S3 server's: redirects to another address, and web pages.

botocore follows redirects for regions until Python's stack overflows, and treats a web page as a busy server. Both mean
that `storage.s3.endpoint` names something else, which no retry changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REDIRECTS = frozenset({301, 302, 307, 308})
_REGION_HEADER = "x-amz-bucket-region"
_SIGNS_OF_S3 = ("x-amz-request-id", "x-amz-id-2", "etag")
_PAGE_STARTS = (b"<!doctype html", b"<html")
_LONGEST_ADDRESS = 200


class ForeignAnswerError(Exception):
    """The endpoint is not the S3 server; the message completes "the endpoint ..."."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class UnreadableAnswerError(Exception):
    """A successful reply that lacks what every such reply has."""


def refuse_foreign(response_dict: Mapping[str, Any], **_others: Any) -> None:
    """Raise ForeignAnswerError for a reply that no S3 server gives. A handler of botocore's event `before-parse`."""
    body = response_dict["body"]
    error = _foreign(
        int(response_dict["status_code"]),
        {str(name).lower(): str(value) for name, value in response_dict["headers"].items()},
        body if isinstance(body, bytes) else b"",
    )
    if error is not None:
        if hasattr(body, "close"):
            # A stream that is never read.
            body.close()
        raise error


def _foreign(status: int, headers: Mapping[str, str], content: bytes) -> ForeignAnswerError | None:
    if status in _REDIRECTS and _REGION_HEADER not in headers and b"<Code>" not in content:
        return ForeignAnswerError(_redirect(headers.get("location", "")), _REDIRECT_HINT)
    # A gateway sends its own page with 5xx while its server restarts: that is temporary.
    if status < 500 and _is_page(headers, content):
        return ForeignAnswerError(
            f"replies with a web page (HTTP {status}, {headers.get('content-type', 'no content type')})",
            "It is not the S3 API: it may be the server's console, a login or a proxy. Name the port of the S3 API.",
        )
    return None


_REDIRECT_HINT = (
    "Set the address to which it redirects, if that is the S3 API (https for http?); else name the server itself, "
    "without the proxy in front of it."
)


def _redirect(location: str) -> str:
    where = location[:_LONGEST_ADDRESS].partition("?")[0]
    return f"redirects to {where}" if where else "redirects, without saying where"


def _is_page(headers: Mapping[str, str], content: bytes) -> bool:
    if any(name in headers for name in _SIGNS_OF_S3):
        return False
    if content.lstrip()[:20].lower().startswith(_PAGE_STARTS):
        return True
    return headers.get("content-type", "").partition(";")[0].strip().lower() in {"text/html", "application/xhtml+xml"}


def needed(answer: Mapping[str, Any], key: str) -> Any:
    """Return a field that every such reply has; UnreadableAnswerError if this one lacks it."""
    try:
        return answer[key]
    except KeyError:
        raise UnreadableAnswerError(f"its reply lacks {key}") from None
