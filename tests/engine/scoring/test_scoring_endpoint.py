"""A reward server over HTTP, with its faults: a real server on the loopback, a real client."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support.patience import LIMIT_S

from wrpo_engine.config import RewardModel
from wrpo_engine.errors import ConfigError, DataError, Interrupted, TemporaryError
from wrpo_engine.scoring.endpoint import EndpointScorer
from wrpo_engine.scoring.endpoint_client import EndpointClient, RetryPolicy, make_client, reward_of

KEY = "sk-very-secret"
QUICK = RetryPolicy(attempts=4, first_pause_s=0.001, max_pause_s=0.01, timeout_s=LIMIT_S)
Answer = tuple[int, dict[str, str], bytes]


def pooling(value: object, **more: Any) -> bytes:
    return json.dumps({"object": "list", "data": [{"index": 0, "object": "pooling", "data": value}], **more}).encode()


class RewardServer(ThreadingHTTPServer):
    """Answers as `behave(number of the request, its body)` says; None closes the connection without a word."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave: Callable[[int, dict[str, Any]], Answer | None] = lambda _, body: (
            200,
            {},
            pooling([float(len(body["messages"][1]["content"]))]),
        )
        self.requests: list[dict[str, Any]] = []
        self.active = 0
        self.most_active = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: RewardServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append({"path": self.path, "key": self.headers.get("Authorization"), "body": body})
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            answer = server.behave(number, body)
        finally:
            with server.lock:
                server.active -= 1
        if answer is None:
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[RewardServer]:
    running = RewardServer()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def scorer(
    server: RewardServer, *, key: str | None = None, path: str = "", concurrency: int = 16, **changes: Any
) -> EndpointScorer:
    reward = RewardModel(endpoint=server.url + path, endpoint_model="rm", **changes)
    made = make_client(reward, {"WRPO_REWARD_API_KEY": key} if key else {})
    return EndpointScorer(
        EndpointClient(
            identity=made.identity,
            url=made.url,
            model=made.model,
            chat_template=made.chat_template,
            key=made.key,
            retries=QUICK,
        ),
        concurrency=concurrency,
    )


def test_rewards_come_in_the_order_of_the_pairs(server: RewardServer) -> None:
    pairs = [(f"prompt {index}", "x" * (index % 7)) for index in range(60)]
    seen: list[int] = []
    rewards = scorer(server, key=KEY).rewards(pairs, on_progress=seen.append)
    assert [reward.score for reward in rewards] == [float(index % 7) for index in range(60)]
    assert sum(seen) == 60
    first = next(entry for entry in server.requests if entry["body"]["messages"][0]["content"] == "prompt 0")
    assert (first["path"], first["key"]) == ("/pooling", f"Bearer {KEY}")
    assert first["body"] == {
        "model": "rm",
        "messages": [{"role": "user", "content": "prompt 0"}, {"role": "assistant", "content": ""}],
        "use_activation": False,
    }


@pytest.mark.parametrize("concurrency", [3, 20])
def test_so_many_requests_run_at_a_time_and_no_more(server: RewardServer, concurrency: int) -> None:
    full = threading.Barrier(concurrency)

    def behave(number: int, _: dict[str, Any]) -> Answer:
        if number < concurrency:
            full.wait(timeout=LIMIT_S)
        return 200, {}, pooling([1.0])

    server.behave = behave
    scorer(server, concurrency=concurrency).rewards([("p", str(index)) for index in range(3 * concurrency)])
    assert server.most_active == concurrency


@pytest.mark.parametrize("fault", [429, 500, 503, 504, None, b'{"data": [{"da'])
def test_what_may_pass_is_tried_again(server: RewardServer, fault: int | bytes | None) -> None:
    def behave(number: int, _: dict[str, Any]) -> Answer | None:
        if number >= 2:
            return 200, {}, pooling([0.5])
        if isinstance(fault, bytes):
            # Promises more than it sends.
            return 200, {"Content-Length": "4000"}, fault
        return None if fault is None else (fault, {"Retry-After": "0"}, b"busy")

    server.behave = behave
    assert scorer(server).rewards([("p", "r")])[0].score == 0.5
    assert len(server.requests) == 3


def test_a_server_that_stays_down_is_a_temporary_error_with_its_words(server: RewardServer) -> None:
    server.behave = lambda _, __: (503, {}, f"overloaded, your key {KEY} must wait".encode())
    with pytest.raises(TemporaryError) as error:
        scorer(server, key=KEY).rewards([("p", "r")], ["row 9"])
    assert error.value.code == "RewardEndpointUnavailable"
    assert error.value.message == (
        f"reward endpoint {server.url} gave no reward for row 9 in 4 attempts: "
        "HTTP 503 overloaded, your key *** must wait"
    )
    assert len(server.requests) == 4


def test_a_server_that_is_not_there_is_a_temporary_error() -> None:
    gone = RewardServer()
    gone.server_close()
    with pytest.raises(TemporaryError, match="Connection refused"):
        scorer(gone).rewards([("p", "r")])


def test_an_answer_that_does_not_come_in_time_is_tried_again(server: RewardServer) -> None:
    release = threading.Event()

    def behave(number: int, _: dict[str, Any]) -> Answer:
        if number == 0:
            release.wait(LIMIT_S)
        return 200, {}, pooling([2.0])

    server.behave = behave
    # A busy machine may be late with the other answers too.
    many = RetryPolicy(attempts=100, first_pause_s=0.01, max_pause_s=0.01, timeout_s=0.2)
    client = EndpointClient(identity="e", url=f"{server.url}/pooling", model=None, retries=many)
    assert EndpointScorer(client).rewards([("p", "r")])[0].score == 2.0
    release.set()


@pytest.mark.parametrize(
    ("status", "kind", "code", "text"),
    [
        (401, ConfigError, "RewardEndpointForbidden", "refuses the key with HTTP 401"),
        (403, ConfigError, "RewardEndpointForbidden", "refuses the key with HTTP 403"),
        (404, ConfigError, "RewardEndpointInvalid", "returns HTTP 404: no such model"),
        (302, ConfigError, "RewardEndpointInvalid", "returns HTTP 302"),
        (400, DataError, "RewardEndpointRefused", "refuses row 0 with HTTP 400: no such model"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(
    server: RewardServer, status: int, kind: type[Exception], code: str, text: str
) -> None:
    server.behave = lambda _, __: (status, {"Location": "http://127.0.0.1:1/pooling"}, b"no such model")
    with pytest.raises(kind, match=text) as error:
        scorer(server).rewards([("p", "r")])
    assert getattr(error.value, "code", None) == code
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pooling([0.25]),
        pooling([[9.0], [0.25]]),
        b'{"data": [{"index": 0, "label": "LABEL_0", "probs": [0.25], "num_classes": 1}]}',
        b'{"data": [{"index": 0, "score": 0.25}]}',
        b'{"score": 0.25}',
    ],
)
def test_answers_of_pooling_classify_and_score_are_read(answer: bytes) -> None:
    assert reward_of(answer, "e", "row 0", field="reward.endpoint").score == 0.25


def test_the_tokens_that_the_server_counted_are_kept() -> None:
    assert reward_of(pooling([1.0], usage={"prompt_tokens": 12}), "e", "r", field="f").num_tokens == 12


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b"[]", b'{"data": []}', pooling("AAA="), pooling(True), b"3"])
def test_answers_without_a_reward_are_shown(answer: bytes) -> None:
    with pytest.raises(DataError, match="holds no reward") as error:
        reward_of(answer, "e", "row 0", field="reward.endpoint")
    assert error.value.code == "RewardEndpointInvalid"


def test_a_model_with_more_labels_is_refused() -> None:
    with pytest.raises(DataError, match="gives 3 numbers for row 0, but a reward model has one label"):
        reward_of(pooling([0.1, 0.2, 0.7]), "e", "row 0", field="reward.endpoint")


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_reward_that_is_no_number_names_its_row(server: RewardServer, value: float | None) -> None:
    server.behave = lambda _, body: (200, {}, pooling([value if body["messages"][1]["content"] == "b" else 1.0]))
    with pytest.raises(DataError, match="for second") as error:
        scorer(server).rewards([("p", "a"), ("p", "b")], ["first", "second"])
    assert error.value.code == "RewardNotFinite"


def test_the_key_is_never_logged_or_shown(
    server: RewardServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.behave = lambda number, _: (
        (401, {}, f"bad key {KEY}".encode()) if number else (500, {}, f"hello {KEY}".encode())
    )
    asked = scorer(server, key=KEY)
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError) as error:
        asked.rewards([("p", "r")])
    shown = capfd.readouterr()
    texts = [str(error.value), str(error.value.hint), repr(asked._client), caplog.text, shown.out, shown.err]
    assert not [text for text in texts if KEY in text]


def test_a_url_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError) as error:
        make_client(RewardModel(endpoint="http://me:hunter2@host:8000"), {})
    assert "hunter2" not in str(error.value)
    assert error.value.field == "reward.endpoint"


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("http://[::1/v1", "http://[::1/v1"),
        ("http://host:abc/v1", "http://host:abc/v1"),
        ("http://host:99999", "http://host:99999"),
        ("http://host:0", "http://host:0"),
        ("http:///v1", "http:///v1"),
        ("http://me:hunter2@host:abc", "host:abc"),
    ],
)
def test_a_url_of_no_server_is_refused_before_any_request(endpoint: str, shown: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_client(RewardModel(endpoint=endpoint), {}, section="evaluation.judges[rm].reward")
    expected = f"evaluation.judges[rm].reward.endpoint is {shown!r}: it names no host and port"
    assert (error.value.message, error.value.code) == (expected, "RewardEndpointInvalid")


@pytest.mark.parametrize(
    ("path", "asked"), [("", "/pooling"), ("/", "/pooling"), ("/rm", "/rm/pooling"), ("/classify", "/classify")]
)
def test_the_path_is_that_of_the_pooling_api(server: RewardServer, path: str, asked: str) -> None:
    scorer(server, path=path).rewards([("p", "r")])
    assert server.requests[0]["path"] == asked


def test_a_declared_template_is_sent(server: RewardServer) -> None:
    scorer(server, chat_template="{{ messages }}").rewards([("p", "r")])
    assert server.requests[0]["body"]["chat_template"] == "{{ messages }}"


def test_a_stop_request_does_not_wait_for_the_server(server: RewardServer) -> None:
    release = threading.Event()

    def behave(_: int, __: dict[str, Any]) -> Answer:
        release.wait(LIMIT_S)
        return 200, {}, pooling([1.0])

    def stop(_: int) -> None:
        raise Interrupted

    server.behave = behave
    with pytest.raises(Interrupted):
        scorer(server).rewards([("p", "r")] * 3, on_progress=stop)
    assert not release.is_set(), "it waited for the server"
    release.set()


def test_pauses_double_with_jitter_and_follow_the_server() -> None:
    policy = RetryPolicy(first_pause_s=1, max_pause_s=10)
    assert [policy.pause(attempt, None, lambda: 1.0) for attempt in range(6)] == [1, 2, 4, 8, 10, 10]
    assert policy.pause(3, None, lambda: 0.25) == 2
    assert policy.pause(0, 5, lambda: 0.5) == 5.5
    assert policy.pause(0, 500, lambda: 0.0) == 10
