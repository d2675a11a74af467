"""Progress reports on the console and to the operator, in Kubeflow Trainer's form. They never fail a stage."""

from __future__ import annotations

import contextlib
import json
import logging
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

POST_INTERVAL_S = 5.0
LINE_INTERVAL_S = 5.0
_NOISE = 1.1
"""An estimate that is later by up to this factor counts as the same."""
_STANDING_BY = 503
_POST_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ProgressState:
    """The state at one moment: `done` of `total` units since `started_s`, all clocks monotonic seconds."""

    done: float
    total: float
    elapsed_s: float
    metrics: Mapping[str, float]
    message: str = ""
    first_done: float = 0.0
    """What was already done when the stage started: it does not count for the speed."""
    unit: str = ""
    """What is counted, in the singular, e.g. model."""
    known_remaining_s: int | None = None
    """The last estimate that was shown; a later one is not shown, because the speed is not known."""

    @property
    def percent(self) -> int:
        """Done share in whole percent, 0 to 100."""
        return 100 if self.total <= 0 else max(0, min(100, int(100 * self.done / self.total)))

    @property
    def remaining_s(self) -> int | None:
        """Estimated seconds to the end, never more than was shown; None without progress or if the work slows down."""
        gained = self.done - self.first_done
        if gained <= 0 or self.elapsed_s <= 0 or self.total <= 0:
            return None
        estimate = max(0, round((self.total - self.done) * self.elapsed_s / gained))
        known = self.known_remaining_s
        if known is None or estimate <= known:
            return estimate
        return known if estimate <= known * _NOISE else None


def trainer_status(state: ProgressState, now: datetime) -> dict[str, Any]:
    """Return the body of a post (KEP-2779)."""
    status: dict[str, Any] = {
        "progressPercentage": state.percent,
        "metrics": [{"name": name, "value": f"{value:.6g}"} for name, value in state.metrics.items()],
        "lastUpdatedTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if (remaining := state.remaining_s) is not None:
        status["estimatedRemainingSeconds"] = remaining
    return {"trainerStatus": status}


def progress_line(stage: str, state: ProgressState) -> str:
    """Return the state as one line of a log."""
    # A part of a unit is done: which one is read more easily than 1.13793/4.
    is_whole = float(state.done).is_integer()
    current = f"{state.unit} {int(state.done) + 1} of {state.total:g}".lstrip()
    counted = f"{state.done:g}/{state.total:g}" if is_whole else current
    parts = [f"{stage}: {state.percent}% ({counted})"]
    if state.message:
        parts.append(state.message)
    parts += [f"{name} {value:.4g}" for name, value in state.metrics.items()]
    if (remaining := state.remaining_s) is not None and state.done < state.total:
        parts.append(f"about {remaining} s left")
    return ", ".join(parts)


class Sink(Protocol):
    """An output for progress."""

    def show(self, state: ProgressState) -> None:
        """Show the state."""
        ...

    def close(self) -> None:
        """Show the last state and release the output."""
        ...


@dataclass
class LineSink:
    """Plain lines, at most one every few seconds, for logs."""

    stage: str
    stream: TextIO
    monotonic: Callable[[], float]
    _last_s: float | None = None
    _last_line: str = ""

    def show(self, state: ProgressState) -> None:
        """Write a line, unless the last one is recent or the same."""
        now = self.monotonic()
        if self._last_s is not None and now - self._last_s < LINE_INTERVAL_S and state.done < state.total:
            return
        line = progress_line(self.stage, state)
        if line != self._last_line:
            self.stream.write(line + "\n")
            self.stream.flush()
        self._last_s, self._last_line = now, line

    def close(self) -> None:
        """Flush the stream."""
        self.stream.flush()


class BarSink:
    """A live bar on a terminal."""

    def __init__(self, stage: str, console: Console) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._task = self._bar.add_task(stage, total=None, note="")
        before = sys.stderr
        self._bar.start()
        # The bar has put itself in front of stderr, but log handlers keep the stream they were made with: their lines
        # would run into the bar.
        self._diverted = [
            (handler, before)
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is before
        ]
        for handler, _ in self._diverted:
            handler.setStream(sys.stderr)

    def show(self, state: ProgressState) -> None:
        """Move the bar."""
        notes = [state.message] if state.message else []
        notes += [f"{name} {value:.4g}" for name, value in list(state.metrics.items())[:4]]
        self._bar.update(self._task, total=state.total, completed=state.done, note="  ".join(notes))

    def close(self) -> None:
        """Stop the bar, and give log handlers their stream back."""
        for handler, stream in self._diverted:
            handler.setStream(stream)
        self._bar.stop()


@dataclass(frozen=True)
class Endpoint:
    """The endpoint of progress posts."""

    url: str
    token_path: Path | None = None
    ca_path: Path | None = None

    @staticmethod
    def of(environ: Mapping[str, str]) -> Endpoint | None:
        """Return the endpoint of the environment's KUBEFLOW_TRAINER_SERVER_* variables; None without an HTTP URL."""
        url = environ.get("KUBEFLOW_TRAINER_SERVER_URL")
        if not url or not url.startswith(("http://", "https://")):
            return None
        token, authority = environ.get("KUBEFLOW_TRAINER_SERVER_TOKEN"), environ.get("KUBEFLOW_TRAINER_SERVER_CA_CERT")
        return Endpoint(url, Path(token) if token else None, Path(authority) if authority else None)

    def post(self, body: Mapping[str, Any]) -> None:
        """Send one state; raises OSError if the request fails."""
        headers = {"Content-Type": "application/json"}
        if self.token_path is not None:
            # Read each time: projected tokens rotate.
            headers["Authorization"] = f"Bearer {self.token_path.read_text().strip()}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")  # noqa: S310
        tls = ssl.create_default_context(cafile=str(self.ca_path)) if self.ca_path else None
        # Pods' proxies are for the outside world, not for the operator's service.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=tls)] if tls else [])
        )
        for last_try in (False, False, True):
            try:
                with opener.open(request, timeout=_POST_TIMEOUT_S) as response:
                    response.read()
            except urllib.error.HTTPError as error:
                error.close()
                # A replica that stands by says so; the next connection may reach the one that acts.
                if last_try or error.code != _STANDING_BY:
                    raise
            else:
                return


class PostSink:
    """Posts the latest state from a daemon thread, at least five seconds apart; failures are ignored."""

    def __init__(self, post: Callable[[Mapping[str, Any]], None], *, interval_s: float = POST_INTERVAL_S) -> None:
        self._post = post
        self._interval_s = interval_s
        self._latest: ProgressState | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def show(self, state: ProgressState) -> None:
        """Hand the state to the thread that posts."""
        with self._changed:
            self._latest = state
            self._changed.notify()

    def close(self) -> None:
        """Send the last state, and wait no longer than the timeout of one post."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=_POST_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._latest is not None or self._closed)
                state, self._latest = self._latest, None
            if state is None:
                return
            # A hint only: the operator takes completion from the pod's status.
            with contextlib.suppress(Exception):
                self._post(trainer_status(state, datetime.now(UTC)))
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=self._interval_s)


@dataclass
class Progress:
    """Interface for stages. `update` never raises and never blocks."""

    sinks: list[Sink] = field(default_factory=list)
    monotonic: Callable[[], float] = field(default=lambda: 0.0)
    unit: str = ""
    """What is counted, in the singular."""
    _started_s: float | None = None
    _first_done: float = 0.0
    _remaining_s: int | None = None

    def update(
        self, done: float, total: float, *, metrics: Mapping[str, float] | None = None, message: str = ""
    ) -> None:
        """Show `done` of `total` units with metrics and a message; errors of sinks are ignored."""
        now = self.monotonic()
        if self._started_s is None:
            self._started_s, self._first_done = now, done
        state = ProgressState(
            done,
            total,
            now - self._started_s,
            dict(metrics or {}),
            message,
            first_done=self._first_done,
            unit=self.unit,
            known_remaining_s=self._remaining_s,
        )
        self._remaining_s = self._remaining_s if state.remaining_s is None else state.remaining_s
        for sink in self.sinks:
            with contextlib.suppress(Exception):
                sink.show(state)

    def close(self) -> None:
        """Close all sinks; their errors are ignored."""
        for sink in self.sinks:
            with contextlib.suppress(Exception):
                sink.close()


def make_progress(
    stage: str, environ: Mapping[str, str], monotonic: Callable[[], float], *, is_main: bool = True, unit: str = ""
) -> Progress:
    """Console progress, and posts where an endpoint is given; silent on all ranks but the first.

    `unit` is the singular of what is counted, for lines such as `model 2 of 4`.
    """
    if not is_main:
        return Progress([], monotonic)
    sinks: list[Sink] = []
    if sys.stderr.isatty():
        sinks.append(BarSink(stage, Console(stderr=True)))
    else:
        sinks.append(LineSink(stage, sys.stderr, monotonic))
    if (endpoint := Endpoint.of(environ)) is not None:
        sinks.append(PostSink(endpoint.post))
    return Progress(sinks, monotonic, unit=unit)
