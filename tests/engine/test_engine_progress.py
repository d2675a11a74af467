"""Progress is a hint: shown as lines, posted in Kubeflow Trainer's form, and never a reason to fail."""

from __future__ import annotations

import io
import json
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from engine_support import NOON
from hypothesis import given
from hypothesis import strategies as st
from support.patience import LIMIT_S

from wrpo_engine.process.progress import (
    Endpoint,
    LineSink,
    PostSink,
    Progress,
    ProgressState,
    make_progress,
    trainer_status,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_post_has_the_form_of_kubeflow_trainer() -> None:
    state = ProgressState(25, 100, 10.0, {"loss": 0.5})
    assert trainer_status(state, NOON) == {
        "trainerStatus": {
            "progressPercentage": 25,
            "estimatedRemainingSeconds": 30,
            "metrics": [{"name": "loss", "value": "0.5"}],
            "lastUpdatedTime": "2026-01-01T12:00:00Z",
        }
    }


REMAINING = {
    "what an earlier attempt did says nothing about speed": (ProgressState(60, 100, 10.0, {}, first_done=50), 40),
    "nothing done yet": (ProgressState(0, 100, 10.0, {}), None),
    "done": (ProgressState(100, 100, 10.0, {}), 0),
}


@pytest.mark.parametrize(("state", "expected"), REMAINING.values(), ids=REMAINING.keys())
def test_the_remaining_time_follows_the_speed_so_far(state: ProgressState, expected: int | None) -> None:
    assert state.remaining_s == expected


def test_lines_come_at_most_every_five_seconds_and_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress([LineSink("train", stream, clock)], clock)
    for done in range(11):
        progress.update(done, 10, metrics={"loss": 0.25})
        clock.now += 1
    assert stream.getvalue().splitlines() == [
        "train: 0% (0/10), loss 0.25",
        "train: 50% (5/10), loss 0.25, about 5 s left",
        "train: 100% (10/10), loss 0.25",
    ]


def test_a_line_names_the_unit_that_is_partly_done() -> None:
    stream = io.StringIO()
    progress = Progress([LineSink("assets", stream, Clock())], Clock(), unit="model")
    progress.update(1 + 4 / 29, 4, message="models/b step 4/29")
    assert stream.getvalue() == "assets: 28% (model 2 of 4), models/b step 4/29\n"


class Remaining:
    """Keeps the estimates that a sink could show."""

    def __init__(self) -> None:
        self.shown: list[int | None] = []

    def show(self, state: ProgressState) -> None:
        self.shown.append(state.remaining_s)

    def close(self) -> None:
        pass


@given(st.lists(st.floats(0.01, 1000.0), min_size=1, max_size=40))
def test_the_remaining_time_never_rises(pauses: list[float]) -> None:
    clock, sink = Clock(), Remaining()
    progress = Progress([sink], clock)
    progress.update(0, len(pauses))
    for done, pause in enumerate(pauses, start=1):
        clock.now += pause
        progress.update(done, len(pauses))
    shown = [each for each in sink.shown if each is not None]
    assert shown == sorted(shown, reverse=True)
    assert shown[-1] == 0, "at the end it is known"


def test_work_that_slows_down_has_no_remaining_time_until_the_end_is_as_near_as_was_shown() -> None:
    clock, sink = Clock(), Remaining()
    progress = Progress([sink], clock)
    for done, pause in enumerate((0, 10, 10, 60, 1, 1, 1, 1, 1, 1, 1)):
        clock.now += pause
        progress.update(done, 10)
    assert sink.shown == [None, 90, 80, None, None, 80, 55, 36, 21, 10, 0]


def test_a_sink_that_fails_does_not_fail_the_stage() -> None:
    class Broken:
        def show(self, state: ProgressState) -> None:
            raise OSError("broken pipe")

        def close(self) -> None:
            raise OSError("broken pipe")

    stream = io.StringIO()
    progress = Progress([Broken(), LineSink("train", stream, Clock())], Clock())
    progress.update(1, 1)
    progress.close()
    assert stream.getvalue() == "train: 100% (1/1)\n"


class Receiver:
    def __init__(self) -> None:
        self.posts: list[tuple[str | None, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posts.append((self.headers["Authorization"], json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/progress"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_the_last_state_is_posted_with_the_token(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    environ = {
        "KUBEFLOW_TRAINER_SERVER_URL": receiver.url,
        "KUBEFLOW_TRAINER_SERVER_TOKEN": str(tmp_path / "token"),
    }
    progress = make_progress("train", environ, Clock())
    progress.update(1, 2)
    progress.update(2, 2)
    progress.close()
    authorization, body = receiver.posts[-1]
    assert authorization == "Bearer secret"
    assert body["trainerStatus"]["progressPercentage"] == 100


def test_states_between_two_posts_are_not_posted() -> None:
    bodies: list[Any] = []
    posted = threading.Event()

    def post(body: Any) -> None:
        bodies.append(body["trainerStatus"]["progressPercentage"])
        posted.set()

    sink = PostSink(post, interval_s=60)
    sink.show(ProgressState(0, 10, 0.0, {}))
    assert posted.wait(LIMIT_S)
    for done in range(1, 11):
        sink.show(ProgressState(done, 10, 1.0, {}))
    sink.close()
    assert bodies == [0, 100]


def test_an_endpoint_that_is_away_is_ignored() -> None:
    progress = Progress([PostSink(Endpoint("http://127.0.0.1:1/none").post)], Clock())
    progress.update(1, 1)
    progress.close()


ENDPOINTS: dict[str, tuple[dict[str, str], Endpoint | None]] = {
    "none": ({}, None),
    "not HTTP": ({"KUBEFLOW_TRAINER_SERVER_URL": "file:///etc/passwd"}, None),
    "HTTP": ({"KUBEFLOW_TRAINER_SERVER_URL": "http://op/x"}, Endpoint("http://op/x")),
}


@pytest.mark.parametrize(("environ", "expected"), ENDPOINTS.values(), ids=ENDPOINTS.keys())
def test_the_endpoint_comes_from_the_environment(environ: dict[str, str], expected: Endpoint | None) -> None:
    assert Endpoint.of(environ) == expected


def test_other_ranks_are_silent() -> None:
    assert make_progress("train", {"KUBEFLOW_TRAINER_SERVER_URL": "http://op/x"}, Clock(), is_main=False).sinks == []


def test_a_replica_that_stands_by_is_asked_no_more_than_three_times() -> None:
    answers = iter([503, 503, 200, 503, 503, 503, 403])
    asked: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(next(answers))
            self.send_response(asked[-1])
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    try:
        endpoint.post({})
        assert asked == [503, 503, 200]
        for code in (503, 403):
            with pytest.raises(urllib.error.HTTPError, match=str(code)):
                endpoint.post({})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == [503, 503, 200, 503, 503, 503, 403]
