"""Structured logs: one JSON object per line on stderr, or plain text lines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

_context: ContextVar[Mapping[str, object]] = ContextVar("log_context", default={})  # noqa: B039  # never mutated
FIELDS = ("experiment", "stage", "attempt", "child")


def bind(**fields: object) -> None:
    """Add `fields` to every line this task logs from now on."""
    _context.set({**_context.get(), **fields})


class JsonFormatter(logging.Formatter):
    """Fields: time, level, logger, message, the bound fields, and those given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one JSON object."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_context.get(),
        }
        line.update({field: getattr(record, field) for field in FIELDS if hasattr(record, field)})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class KopfNoise(logging.Filter):
    """Drops kopf's errors about requests that it retries."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a request that kopf retries."""
        return "failed; will retry" not in record.getMessage()


def configure(level: str, style: str) -> None:
    """Set up the root logger; `style` is json or text."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handler.addFilter(KopfNoise())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy, at in {"kopf": logging.WARNING, "aiohttp.access": logging.WARNING, "asyncio": logging.WARNING}.items():
        logging.getLogger(noisy).setLevel(max(at, root.level))
