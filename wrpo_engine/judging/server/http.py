"""HTTP of the judge server: POST /v1/chat/completions, GET /v1/models and /health."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from wrpo_engine.errors import WrpoError
from wrpo_engine.judging.server.batching import BatchingScorer
from wrpo_engine.judging.server.opinions import Opinion, Scale
from wrpo_engine.judging.server.questions import UnknownQuestionError, parse_question

_MAX_BODY_BYTES = 16 << 20


class Refusal(Exception):  # noqa: N818 (a reply)
    """A request that gets an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Content(NamedTuple):
    """A reply."""

    status: int
    body: Mapping[str, Any]


class JudgeServer(ThreadingHTTPServer):
    """Serves one reward under one name."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], *, model: str, scorer: BatchingScorer, scale: Scale) -> None:
        super().__init__(address, _Handler)
        self.model = model
        self.scorer = scorer
        self.scale = scale

    def complete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chat completion of a request; Refusal for one that cannot be answered."""
        if request.get("model") != self.model:
            raise Refusal(404, f"the model {request.get('model')!r} does not exist; this server has {self.model!r}")
        if request.get("stream"):
            raise Refusal(400, "stream is not supported")
        messages = request.get("messages")
        if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
            raise Refusal(400, "messages must be a list of objects")
        try:
            question = parse_question(messages)
        except UnknownQuestionError as error:
            raise Refusal(400, str(error)) from error
        try:
            rewards = self.scorer.scores([(question.prompt, answer) for answer in question.answers])
        except WrpoError as error:
            raise Refusal(500, error.message) from error
        opinion = self.scale.opinion(question, rewards)
        return completion(self.model, opinion, messages, has_logprobs=bool(request.get("logprobs")))


def completion(
    model: str, opinion: Opinion, messages: list[Mapping[str, Any]], *, has_logprobs: bool
) -> dict[str, Any]:
    """Return a chat completion that says the opinion. A token is a word, because a reward has no other."""
    alternatives = [{"token": token, "logprob": value, "bytes": None} for token, value in opinion.logprobs]
    first = {**alternatives[0], "top_logprobs": alternatives} if alternatives else None
    words = sum(len(str(message.get("content")).split()) for message in messages)
    said = len(opinion.text.split())
    return {
        "id": "chatcmpl-reward",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": opinion.text},
                "logprobs": {"content": [first]} if has_logprobs and first else None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": words, "completion_tokens": said, "total_tokens": words + said},
    }


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer /health and /v1/models."""
        if self.path == "/health":
            self._send(Content(200, {}))
        elif self.path.rstrip("/") == "/v1/models":
            self._send(Content(200, {"object": "list", "data": [{"id": self.server.model, "object": "model"}]}))
        else:
            self._send(_error(404, f"there is no {self.path}; see /v1/models"))

    def do_POST(self) -> None:
        """Answer /v1/chat/completions."""
        try:
            self._send(Content(200, self.server.complete(self._body())))
        except Refusal as refusal:
            self._send(_error(refusal.status, refusal.message))

    def _body(self) -> Mapping[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            raise Refusal(413, f"Content-Length must be a number up to {_MAX_BODY_BYTES}")
        data = self.rfile.read(int(length))
        if self.path.rstrip("/") != "/v1/chat/completions":
            raise Refusal(404, f"there is no {self.path}; POST /v1/chat/completions")
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "the body is not JSON") from error
        if not isinstance(body, dict):
            raise Refusal(400, "the body is not a JSON object")
        return body

    def _send(self, content: Content) -> None:
        data = json.dumps(content.body).encode()
        self.send_response(content.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Write no line for each request."""


def _error(status: int, message: str) -> Content:
    return Content(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})
