"""Hub client: retries, rate limits, error translation."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from wrpo_engine.errors import ConfigError, TemporaryError, first_line
from wrpo_engine.retrying import Backoff, Tries, retry, seconds_of

log = logging.getLogger("wrpo_engine")

T = TypeVar("T")
_BACKOFF = Backoff(first_s=1.0, longest_s=60.0)
_WAIT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_FROM = "HF_TOKEN from a Secret, in spec.env"
_PUT_ON_STORAGE = "put the model on the storage and name it storage://PATH"


def is_offline(environ: Mapping[str, str]) -> bool:
    """Return whether downloads are forbidden."""
    return environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def section_of(field: str) -> str:
    """Return the section of the spec whose field names a model: that of revision and trustRemoteCode."""
    return field.removesuffix(".model")


def offline_error(name: str, field: str) -> ConfigError:
    """Return the error for a model that is not in the cache while downloads are forbidden."""
    return ConfigError(
        field,
        name,
        "it is not in the local cache, and HF_HUB_OFFLINE forbids downloading",
        "Put the model on the storage volume (storage://PATH) or allow downloads.",
        code="ModelNotFound",
    )


@dataclass(frozen=True)
class HubPatience:
    """Time limit for the retries of requests to a busy or unreachable hub."""

    seconds: float = 900.0
    """Without progress. A hub's limits are counted over some minutes."""
    poll: Callable[[], None] = lambda: None
    """Raises when the stage should stop."""
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, environ: Mapping[str, str], poll: Callable[[], None]) -> HubPatience:
        """Read the limit from WRPO_HUB_PATIENCE_SECONDS."""
        return cls(seconds_of(environ, "WRPO_HUB_PATIENCE_SECONDS", cls.seconds), poll)

    def call(self, what: str, request: Callable[[], T], *, progress: Callable[[], int] = lambda: 0) -> T:
        """Make a request until it succeeds, fails for good, or the time for retries ends. Progress restarts it."""

        def polled() -> T:
            self.poll()
            return request()

        def next_pause(error: Exception, tries: Tries) -> float:
            if not is_worth_waiting(error):
                raise error
            asked = retry_after_s(error, datetime.now(UTC))
            pause = _BACKOFF.pause(tries.failed) if asked is None else asked
            if tries.waited_s + pause > self.seconds:
                raise error
            return pause

        def wait(error: Exception, pause: float) -> None:
            log.warning("%s: %s; retrying in %.1f s", what, first_line(error), pause)
            self._wait(pause)

        return retry(polled, next_pause=next_pause, wait=wait, progress=progress, monotonic=self.monotonic)

    def _wait(self, seconds: float) -> None:
        """Wait in short pieces, so that a stop request is noticed."""
        while seconds > 0:
            self.poll()
            self.sleep(min(1.0, seconds))
            seconds -= 1.0


def is_worth_waiting(error: Exception) -> bool:
    """Return whether the same request may succeed a little later."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError):
        return _status(error) in _WAIT_STATUS
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError)


def retry_after_s(error: Exception, now: datetime) -> float | None:
    """Return the seconds the hub asks to wait: Retry-After (seconds or a date), or its RateLimit header's reset."""
    response = getattr(error, "response", None)
    if response is None:
        return None
    text = str(response.headers.get("Retry-After", "")).strip()
    if text.replace(".", "", 1).isdigit():
        return float(text)
    if text:
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    limit = parse_ratelimit_headers(response.headers) if _status(error) == 429 else None
    return None if limit is None else float(limit.reset_in_seconds)


def _response(error: Any) -> Any:
    return getattr(error, "response", None)


def _status(error: Any) -> int:
    return int(getattr(_response(error), "status_code", 0) or 0)


def raise_for_status(answer: Any) -> None:
    """Raise the hub's own error for a reply that is one; for a streamed reply, too."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    if answer.is_error:
        # The reason is in the body, which a stream has not read.
        answer.read()
    hf_raise_for_status(answer)


@contextlib.contextmanager
def hub_errors(name: str, revision: str | None, field: str) -> Iterator[None]:
    """Translate the hub's errors into the engine's. `field` is the model's field in the experiment's spec.

    What the hub itself refuses is final: a retry gets the same reply.
    """
    import httpx2
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HFValidationError as error:
        raise _unknown(name, field) from error
    except OfflineModeIsEnabled as error:
        raise offline_error(name, field) from error
    except (
        LocalEntryNotFoundError,
        HfHubHTTPError,
        httpx2.HTTPStatusError,
        httpx2.TransportError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise _refusal(error, name, revision, field) or TemporaryError(
            f"{field} is {name!r}: it cannot be downloaded now ({first_line(error)})",
            code="HubUnreachable",
            field=field,
            hint=f"Check the network, or {_PUT_ON_STORAGE}.",
        ) from error


def _unknown(name: str, field: str) -> ConfigError:
    return ConfigError(
        field,
        name,
        "there is no such model on the hub, or it is private",
        "Check the spelling, or write an absolute path or storage://PATH for a local directory. A private model needs "
        f"a token with access to it ({_FROM}).",
        code="ModelNotFound",
    )


def _forbidden(name: str, field: str, rule: str, hint: str) -> ConfigError:
    return ConfigError(field, name, rule, hint, code="ModelForbidden")


def _refusal(error: Exception, name: str, revision: str | None, field: str) -> ConfigError | None:
    """Return the error of a request that the hub refuses for good; None if a later one may succeed."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    has_token = _has_token()
    if isinstance(error, GatedRepoError):
        if has_token:
            rule = f"access to this model is granted by its authors, and the token of this pod ({_FROM}) has none"
            hint = (
                "Accept the model's licence on the hub with the account of the token, or use another account's token."
            )
        else:
            rule = "access to this model is granted by its authors, and this pod has no token"
            hint = f"Accept the model's licence on the hub and give the pods a token ({_FROM})."
        return _forbidden(name, field, rule, hint)
    if isinstance(error, RevisionNotFoundError):
        at, rule = f"{section_of(field)}.revision", f"{name} has no such revision"
        return ConfigError(at, str(revision), rule, "Check the name.", code="ModelNotFound")
    status = _status(error)
    if isinstance(error, RepositoryNotFoundError) and not (has_token and status == 401):
        return _unknown(name, field)
    # A redirection leads to another server, whose addresses expire.
    if not 400 <= status < 500 or status in _WAIT_STATUS or _response(error).history:
        return None
    if status == 401 and has_token:
        rule = f"the hub does not accept the token of this pod ({_FROM})"
        return _forbidden(name, field, rule, "Replace the token in the Secret: it may be mistyped, expired or revoked.")
    said = f"the hub refuses the request: {first_line(error)}"
    if status in {401, 403}:
        return _forbidden(name, field, said, f"Give the pods a token that may read the model ({_FROM}).")
    return ConfigError(field, name, said, f"Check name and revision, or {_PUT_ON_STORAGE}.", code="ModelNotFound")


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
