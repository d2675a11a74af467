"""Container logs: the shim's lines in the form that `kubectl logs` requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from wrpo_devcluster.client import PODS, ApiError, Client, LogOptions
from wrpo_devcluster.clock import Clock, parse_time
from wrpo_devcluster.kubelet.records import Attempt, last_attempt

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log or a part of one, and the time at which it was written."""

    stamp: str
    is_complete: bool
    text: bytes


def parse_lines(raw: bytes) -> list[LogLine]:
    """Parse whole entries `TIME stdout F|P TEXT`. An incomplete last entry is left out."""
    lines = []
    for entry in raw.split(b"\n")[:-1]:
        stamp, _, rest = entry.partition(b" ")
        _, _, rest = rest.partition(b" ")
        flag, _, text = rest.partition(b" ")
        lines.append(LogLine(stamp.decode("ascii", "replace"), flag == b"F", text))
    return lines


def join_parts(lines: Iterable[LogLine]) -> list[LogLine]:
    """Join the parts of each line. An unfinished last line stays unfinished."""
    result: list[LogLine] = []
    parts: list[LogLine] = []
    for line in lines:
        parts.append(line)
        if line.is_complete:
            result.append(LogLine(parts[0].stamp, True, b"".join(p.text for p in parts)))
            parts = []
    if parts:
        result.append(LogLine(parts[0].stamp, False, b"".join(p.text for p in parts)))
    return result


def select(lines: list[LogLine], *, tail_lines: int | None, since: datetime | None) -> list[LogLine]:
    """Return the lines since a time, and of those the last ones."""
    if since is not None:
        # datetime cannot read nanoseconds, so microseconds are compared.
        lines = [line for line in lines if parse_time(f"{line.stamp[:26]}Z") >= since]
    if tail_lines is not None:
        lines = lines[-tail_lines:] if tail_lines > 0 else []
    return lines


def render(line: LogLine, *, timestamps: bool) -> bytes:
    """Return the bytes of a line, with its time if requested; only a complete line ends in a newline."""
    prefix = f"{line.stamp} ".encode() if timestamps else b""
    return prefix + line.text + (b"\n" if line.is_complete else b"")


def tail_text(path: Path, *, lines: int = 80, size: int = 2048) -> str:
    """Return the end of a log, for FallbackToLogsOnError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ""
    text = b"".join(render(line, timestamps=False) for line in join_parts(parse_lines(raw))[-lines:])
    return text[-size:].decode(errors="replace")


class FileLogReader:
    """Reader of `<state>/pods/<uid>/<container>/<n>.log`."""

    def __init__(self, client: Client, clock: Clock, directory_of: Callable[[str, str], Path]) -> None:
        self._client = client
        self._clock = clock
        self._directory_of = directory_of

    async def read(self, namespace: str, pod: str, container: str, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield the requested part of a log, and with `follow` what is added until the container ends."""
        found = await self._client.get(PODS, pod, namespace)
        directory = self._directory_of(found["metadata"]["uid"], container)
        attempt = last_attempt(directory)
        if options.previous:
            if attempt is None or attempt.number == 0:
                raise _bad_request(f'previous terminated container "{container}" in pod "{pod}" not found')
            attempt = Attempt(directory, attempt.number - 1)
        if attempt is None:
            why = _waiting_reason(found, container)
            raise _bad_request(f'container "{container}" in pod "{pod}" is waiting to start: {why}')
        since = self._clock.now() - timedelta(seconds=options.since_s) if options.since_s is not None else None
        raw, offset = _read_from(attempt.log_file, 0)
        for line in select(join_parts(parse_lines(raw)), tail_lines=options.tail_lines, since=since):
            yield render(line, timestamps=options.timestamps)
        while options.follow:
            is_over = attempt.exit() is not None or not await self._exists(namespace, pod)
            raw, offset = _read_from(attempt.log_file, offset)
            for line in parse_lines(raw):
                yield render(line, timestamps=options.timestamps)
            if is_over:
                return
            await asyncio.sleep(_POLL_S)

    async def _exists(self, namespace: str, pod: str) -> bool:
        try:
            await self._client.get(PODS, pod, namespace)
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return True


def _read_from(path: Path, offset: int) -> tuple[bytes, int]:
    """Return the complete entries after `offset`, and the offset of their end."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            raw = file.read()
    except FileNotFoundError:
        return b"", offset
    end = raw.rfind(b"\n") + 1
    return raw[:end], offset + end


def _waiting_reason(pod: dict[str, object], container: str) -> str:
    status = pod.get("status")
    statuses = status.get("containerStatuses") or [] if isinstance(status, dict) else []
    for entry in statuses:
        if entry["name"] == container and "waiting" in (entry.get("state") or {}):
            return str(entry["state"]["waiting"].get("reason", "ContainerCreating"))
    return "ContainerCreating"


def _bad_request(message: str) -> ApiError:
    return ApiError(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "BadRequest",
            "code": 400,
        }
    )
