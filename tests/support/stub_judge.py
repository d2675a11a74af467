"""An OpenAI-compatible judge whose verdict follows from the question alone, with faults on request."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "stub-judge"
Body = dict[str, Any]


@dataclass(kw_only=True)
class Reply:
    """What the server sends: `cut` ends the connection within the body, `hang` sends nothing until the server stops."""

    status: int = 200
    content: dict[str, Any] | str | bytes = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    hang: bool = False


Fault = Callable[[int, Body], Reply | None]
"""Number of the request and its body -> a faulty reply; None for the usual one."""


def share_of(body: Body) -> float:
    """A number between 0 and 1 that depends on the question alone."""
    text = json.dumps(body["messages"], sort_keys=True)
    return (hashlib.sha256(text.encode()).digest()[0] + 0.5) / 256


def completion(
    text: str | None,
    *,
    logprobs: dict[str, float] | None = None,
    model: str = MODEL,
    finish_reason: str = "stop",
    **message: Any,
) -> dict[str, Any]:
    tokens = [{"token": token, "logprob": value} for token, value in (logprobs or {}).items()]
    first = {"token": text, "logprob": tokens[0]["logprob"], "top_logprobs": tokens} if tokens else None
    return {
        "object": "chat.completion",
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "logprobs": {"content": [first]} if first else None,
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1},
    }


def usual(body: Body) -> dict[str, Any]:
    share = share_of(body)
    text = "m" if share > 0.5 else "M"
    has = body.get("logprobs")
    return completion(text, logprobs={"m": math.log(share), "M": math.log(1 - share)} if has else None)


def token_m_with_space(_: int, body: Body) -> Reply:
    share = share_of(body)
    return Reply(content=completion(" m", logprobs={" m": math.log(share), " M": math.log(1 - share)}))


def no_logprobs(_: int, body: Body) -> Reply:
    return Reply(content=completion("m" if share_of(body) > 0.5 else "M"))


def verdict_missing(_: int, body: Body) -> Reply:
    return Reply(content=completion("I cannot decide.", logprobs={"I": -0.1} if body.get("logprobs") else None))


def two_verdicts(_: int, __: Body) -> Reply:
    return Reply(content=completion("m\nNo, I mean M"))


def thinking_first(_: int, body: Body) -> Reply:
    return Reply(content=completion("<think>M is long. m?</think>\n\n" + ("m" if share_of(body) > 0.5 else "M")))


def too_long(_: int, __: Body) -> Reply:
    text = "This model's maximum context length is 2048 tokens. However, you requested 4000 tokens."
    return Reply(status=400, content={"error": {"message": text, "code": "context_length_exceeded"}})


def wrong_model(_: int, __: Body) -> Reply:
    return Reply(status=404, content={"error": {"message": "The model `stub-judge` does not exist."}})


def nan(_: int, __: Body) -> Reply:
    return Reply(content=completion("m", logprobs={"m": math.nan, "M": math.nan}))


class StubJudge(ThreadingHTTPServer):
    """Counts every question; `asked` by the content of the messages, `answered` those with a usual reply."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault: Fault = lambda _, __: None
        self.bodies: list[Body] = []
        self.keys: set[str | None] = set()
        self.paths: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.is_down = False
        """Whether requests for the list of models get no reply."""
        self.active = 0
        self.most_active = 0
        self.connections = 0
        self.on_request: Callable[[int], None] = lambda _: None
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: StubJudge
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.server.is_down:
            self.close_connection = True
            return
        self._send(Reply(content={"object": "list", "data": [{"id": MODEL}]}))

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = json.dumps(body["messages"], sort_keys=True)
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.keys.add(self.headers.get("Authorization"))
            server.paths.add(self.path)
            server.asked[question] += 1
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            server.on_request(number)
            reply = server.fault(number, body)
            if reply is None:
                reply = Reply(content=usual(body))
                with server.lock:
                    server.answered[question] += 1
        finally:
            with server.lock:
                server.active -= 1
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.hang:
            self.server.stopping.wait()
            self.close_connection = True
            return
        content = json.dumps(reply.content) if isinstance(reply.content, dict) else reply.content
        data = content if isinstance(content, bytes) else content.encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if reply.cut:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[StubJudge]:
    server = StubJudge()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
