"""The termination message: the pod's outcome for the operator, never longer than Kubernetes keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from wrpo_engine.config import ErrorInfo, TerminationMessage

LIMIT_BYTES = 4096
DEFAULT_PATH = Path("/dev/termination-log")
_ELLIPSIS = "…"
_CONSEQUENCES = frozenset({"InternalError", "PeerLost"})
"""Codes of errors that another rank's error may have caused."""
_READABLE_CHARS = 200
"""Texts are not cut below this while metrics can be left out instead."""


def encode(message: TerminationMessage, limit: int = LIMIT_BYTES) -> bytes:
    """Return the message as JSON of at most `limit` bytes.

    The longest texts are cut first, then metrics are left out from the last name on, then texts are cut to nothing.
    """
    metrics = {name: value for name, value in sorted(message.metrics.items()) if math.isfinite(value)}
    texts = _texts(message.error)
    while True:
        data = _dump(message, metrics, texts)
        excess = len(data) - limit
        if excess <= 0:
            return data
        longest = max(texts, key=lambda name: len(texts[name]), default=None)
        length = len(texts[longest]) if longest else 0
        if longest and (length > _READABLE_CHARS or (not metrics and length > 0)):
            # A character takes at most six bytes in JSON, so this never cuts more than needed.
            keep = length - len(_ELLIPSIS) - math.ceil(excess / 6)
            texts[longest] = texts[longest][: max(0, keep)].rstrip(_ELLIPSIS) + (_ELLIPSIS if keep > 0 else "")
        elif metrics:
            metrics.popitem()
        else:
            return _dump(TerminationMessage(outcome=message.outcome), {}, {})


def write(message: TerminationMessage, environ: Mapping[str, str]) -> None:
    """Write the message where Kubernetes looks for it; elsewhere only if asked to.

    In a distributed stage several ranks may end with an error: the cause must not be overwritten by what it caused
    in others (a broken connection, the signal that follows).
    """
    named = environ.get("WRPO_TERMINATION_MESSAGE_PATH")
    path = Path(named) if named else DEFAULT_PATH
    if not named and not path.exists():
        return
    if environ.get("WORLD_SIZE", "1") != "1" and _holds_cause(path) and not _is_cause(message):
        return
    # The kubelet mounts a single file, which cannot be replaced, only written.
    path.write_bytes(encode(message))


def _texts(error: ErrorInfo | None) -> dict[str, str]:
    if error is None:
        return {}
    texts = {"code": error.code, "field": error.field, "message": error.message, "hint": error.hint}
    return {name: text.encode(errors="replace").decode() for name, text in texts.items() if text is not None}


def _dump(message: TerminationMessage, metrics: dict[str, float], texts: dict[str, str]) -> bytes:
    error = ErrorInfo.model_validate({"code": "", "message": "", **texts}) if texts else None
    shortened = message.model_copy(update={"metrics": metrics, "error": error})
    return shortened.model_dump_json(exclude_none=True).encode()


def _is_cause(message: TerminationMessage) -> bool:
    return message.outcome == "Failed" and message.error is not None and message.error.code not in _CONSEQUENCES


def _holds_cause(path: Path) -> bool:
    try:
        return TerminationMessage.model_validate_json(path.read_bytes()).outcome == "Failed"
    except (OSError, ValidationError):
        return False
