"""An HTTP proxy in front of a real server that answers some requests wrongly, as servers and networks do.

`faults` are asked in turn for every request; the first that has an answer decides. Everything else is passed on.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from support.patience import LIMIT_S

_HOP_HEADERS = {"transfer-encoding", "connection", "content-length", "expect"}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """A fault: its own answer, or what becomes of the server's."""

    status: int | None = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_body_to: int | None = None
    """Pass on so many bytes of the server's body under its full Content-Length, then hang up."""
    stall_after: int | None = None
    """Pass on so many bytes, then nothing for `stall_s`, then hang up."""
    stall_s: float = 5.0
    alter_body: Callable[[bytes], bytes] | None = None
    is_lost: bool = False
    """The server does what it was asked for, and the client never hears of it."""


Fault = Callable[[Request], Answer | None]


def s3_error(status: int, code: str, message: str = "made up by the test") -> Answer:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


def times(count: int, answer: Answer, *, when: Callable[[Request], bool] = lambda _request: True) -> Fault:
    """Answer the first `count` matching requests so."""
    left = [count]
    lock = threading.Lock()

    def fault(request: Request) -> Answer | None:
        with lock:
            if left[0] > 0 and when(request):
                left[0] -= 1
                return answer
        return None

    return fault


@dataclass
class FaultProxy:
    upstream: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ranges_asked(self, word: str) -> list[str]:
        """Return the Range headers of the GETs whose path holds `word`."""
        return [
            r.headers["range"] for r in self.requests if r.method == "GET" and word in r.path and "range" in r.headers
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def _handle(self) -> None:
        request = Request(self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
        content = self._content()
        self.proxy.requests.append(request)
        answer = next((found for fault in self.proxy.faults if (found := fault(request)) is not None), None)
        if answer is not None and answer.status is not None:
            self._send(answer.status, answer.headers, answer.body)
            return
        # The signature covers the Host header that the client sent.
        forwarded = {key: value for key, value in self.headers.items() if key.lower() not in _HOP_HEADERS}
        if content or self.command in {"PUT", "POST"}:
            forwarded["Content-Length"] = str(len(content))
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=LIMIT_S)
        try:
            connection.request(self.command, self.path, body=content or None, headers=forwarded)
            real = connection.getresponse()
            body = real.read()
        except OSError:
            self.close_connection = True
            return
        finally:
            connection.close()
        if answer is not None and answer.is_lost:
            self.close_connection = True
            return
        headers = {key: value for key, value in real.getheaders() if key.lower() not in _HOP_HEADERS}
        if self.command == "HEAD":
            headers["Content-Length"] = real.getheader("Content-Length") or "0"
        self._send(real.status, headers, body, answer)

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Answer | None = None) -> None:
        fault = fault or Answer()
        if fault.alter_body is not None and body:
            body = fault.alter_body(body)
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = fault.cut_body_to if fault.cut_body_to is not None else fault.stall_after
        try:
            if self.command != "HEAD":
                self.wfile.write(body if cut is None else body[:cut])
            self.wfile.flush()
        except OSError:
            return
        if cut is not None:
            if fault.stall_after is not None:
                self.proxy.closing.wait(fault.stall_s)
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(upstream)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    proxy.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(LIMIT_S)
