"""Client of a judge: one chat completion a question, retries, and the meaning of each refusal."""

from __future__ import annotations

import json
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wrpo_engine.config import Runtime
from wrpo_engine.contract.benchmarks import JudgeFields
from wrpo_engine.errors import ConfigError, Interrupted, TemporaryError, WrpoError
from wrpo_engine.judging.pacing import QUOTA_PATIENCE_S, Pacer, RequestLimits
from wrpo_engine.judging.protocol import Ask, Outcome
from wrpo_engine.judging.replies import KeptReply, UnusableReply, error_status, read_completion, shortened
from wrpo_engine.judging.section import ANY_JUDGE, judge_section
from wrpo_engine.retrying import seconds_of
from wrpo_engine.scoring.endpoint_client import RetryPolicy
from wrpo_engine.scoring.posting import (
    MAX_SHOWN,
    RETRIED,
    TRANSPORT_ERRORS,
    HttpFailure,
    Poster,
    ReplyTooLarge,
    key_of,
    split_endpoint,
    without_query,
)

KEY_VARIABLE = "WRPO_JUDGE_API_KEY"
TIMEOUT_VARIABLE = "WRPO_JUDGE_TIMEOUT_SECONDS"
PATIENCE_VARIABLE = "WRPO_JUDGE_PATIENCE_SECONDS"
_RETRIES = RetryPolicy(timeout_s=300.0)
_PATH = "/chat/completions"
_OWN_FIELDS = ("messages", "model", "n", "stream")
"""Fields that extraBody may not change: a reply would belong to another question or have another form."""
_TOO_LONG = re.compile(
    r"context.{0,3}(length|window|size)|maximum.{0,20}(length|tokens)|max_model_len|too long|too many tokens"
    r"|reduce the length|exceeds? .{0,40}(tokens|length)|longer than",
    re.IGNORECASE,
)
_FILTERED = re.compile(r"content_filter|content_policy|content management policy", re.IGNORECASE)
_NO_LOGPROBS = re.compile(r"logprobs", re.IGNORECASE)
_NO_MONEY = "insufficient_quota"
_DATED = re.compile(r"[-@]\d{4}(-?\d{2}){0,2}")


class LogprobsRefused(Exception):  # noqa: N818 (decides the protocol)
    """The endpoint refuses requests for log probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came of one question."""

    reply: KeptReply
    requests: int
    latency_s: float
    """Of the last request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How a judge is reached."""

    endpoint: str
    section: str = ANY_JUDGE
    """Of the spec: the judge."""
    key: str | None = field(default=None, repr=False)
    retries: RetryPolicy = _RETRIES
    concurrency: int = 16
    """Connections that are kept."""
    reported_model: str | None = None
    """Name that replies must have, if it is not that of the request."""

    @classmethod
    def of(cls, endpoint: str, runtime: Runtime, environ: Mapping[str, str]) -> Connection:
        """Return the connection of a stage."""
        return cls(
            endpoint=endpoint,
            section=judge_section(runtime),
            key=key_of(environ, KEY_VARIABLE, code="JudgeForbidden"),
            retries=replace(_RETRIES, timeout_s=seconds_of(environ, TIMEOUT_VARIABLE, _RETRIES.timeout_s)),
            concurrency=runtime.judge_concurrency,
            reported_model=runtime.judge_reported_model,
        )


class ChatClient:
    """Asks one model one question at a time; safe to use from several threads.

    `check` is called after each request without a usable reply, and may raise what explains that.
    """

    def __init__(
        self,
        connection: Connection,
        judge: JudgeFields,
        *,
        pacer: Pacer | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        section = connection.section
        self._endpoint_field, self._model_field = f"{section}.endpoint", f"{section}.model"
        self._body_field, self._reported_field = f"{section}.extraBody", f"{section}.reportedModel"
        parts = split_endpoint(
            connection.endpoint, field=self._endpoint_field, key_variable=KEY_VARIABLE, code="JudgeEndpointInvalid"
        )
        path = parts.path.rstrip("/").removesuffix(_PATH)
        self.identity = without_query(urllib.parse.urlunsplit(parts._replace(path=path)))
        self._models_url = urllib.parse.urlunsplit(parts._replace(path=f"{path}/models"))
        self._model = judge.model
        self._reported_model = connection.reported_model
        self._extra = dict(judge.extra_body)
        if wrong := sorted(self._extra.keys() & set(_OWN_FIELDS)):
            raise ConfigError(self._body_field, wrong[0], "the stage sets this field itself", "Remove it.")
        self._retries = connection.retries
        url = urllib.parse.urlunsplit(parts._replace(path=path + _PATH))
        self._poster = Poster(
            url, key=connection.key, timeout_s=self._retries.timeout_s, connections=connection.concurrency
        )
        self._has_key = connection.key is not None
        self._pacer = pacer or Pacer(RequestLimits(section=section))
        self._check = check
        self._replies = 0

    def ask(self, ask: Ask, where: str, stopped: threading.Event) -> Answered:
        """Return the reply to a question. `where` names it in errors, `stopped` ends waiting.

        A question that exceeds the judge's context, or that the server cannot answer although it answers others, is an
        outcome and no error. Raises LogprobsRefused, ConfigError for what concerns all questions, and TemporaryError.
        """
        body = json.dumps(self.request_of(ask)).encode()
        has_logprobs = ask.top_logprobs is not None
        failed = quota = requests = 0
        replies_before: int | None = None
        while True:
            self._pacer.turn(stopped)
            requests += 1
            begun = time.monotonic()
            reply: KeptReply | None
            try:
                reply = self._read(self._poster.post(body), has_logprobs=has_logprobs)
            except HttpFailure as failure:
                if failure.status == 429:
                    backoff = self._retries.pause(quota, None, random.random)
                    quota += 1
                    is_final = _NO_MONEY in failure.text
                    self._pacer.refused(failure.retry_after_s, backoff, str(failure), is_final=is_final)
                    continue
                reply = self._meaning(failure, where, has_logprobs=has_logprobs)
                last, pause_s = str(failure), failure.retry_after_s
            except (UnusableReply, ReplyTooLarge, *TRANSPORT_ERRORS) as error:
                last, pause_s, reply = self._poster.redacted(f"{type(error).__name__}: {error}"), None, None
            if reply is not None:
                self._replies += 1
                self._pacer.answered()
                return Answered(reply=reply, requests=requests, latency_s=time.monotonic() - begun)
            self._check()
            replies_before = self._replies if replies_before is None else replies_before
            failed += 1
            if failed >= self._retries.attempts:
                reply = self._given_up(last, where, answers_others=self._replies > replies_before)
                return Answered(reply=reply, requests=requests, latency_s=time.monotonic() - begun)
            if stopped.wait(self._retries.pause(failed - 1, pause_s, random.random)):
                raise Interrupted

    @property
    def sent(self) -> int:
        """Requests of this stage so far, those of earlier attempts included."""
        return self._pacer.used

    def request_of(self, ask: Ask) -> dict[str, Any]:
        """Return the body of the request: a field of extraBody that is null removes the stage's own."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(message) for message in ask.messages],
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "top_p": 1.0,
        }
        if ask.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": ask.top_logprobs}
        body |= self._extra
        return {name: value for name, value in body.items() if value is not None}

    def _read(self, content: bytes, *, has_logprobs: bool) -> KeptReply:
        if (status := error_status(content)) is not None:
            raise HttpFailure(status, content.decode("utf-8", "replace"), None)
        reply = read_completion(content, has_logprobs=has_logprobs)
        if not is_model(self._reported_model or self._model, reply.model):
            raise self._other_model(reply.model)
        return reply

    def _other_model(self, reported: str) -> ConfigError:
        rule = f"the judge {self.identity} answers as the model {reported!r}"
        if self._reported_model is not None:
            hint, field = f"Set it to {reported!r} if that is the judge that you want.", self._reported_field
        else:
            hint = (
                f"Set model to {reported!r} if that is the judge that you want, or {self._reported_field} to it if the "
                f"endpoint has it as {self._model!r}, e.g. a deployment or an alias."
            )
            field = self._model_field
        return ConfigError(field, self._reported_model or self._model, rule, hint, code="JudgeModelMismatch")

    def _meaning(self, failure: HttpFailure, where: str, *, has_logprobs: bool) -> KeptReply | None:
        """Return the outcome of a refusal, None if the same request may succeed; raise what ends the stage."""
        status, text = failure.status, failure.text
        if status in RETRIED:
            return None
        if status == 413 or (status in {400, 422} and _TOO_LONG.search(text)):
            return KeptReply(content=shortened(text), finish_reason="", outcome=Outcome.TOO_LONG)
        if status == 400 and _FILTERED.search(text):
            return KeptReply(content=shortened(text), finish_reason="content_filter", is_refusal=True)
        if has_logprobs and status in {400, 422} and _NO_LOGPROBS.search(text):
            raise LogprobsRefused(text[:MAX_SHOWN])
        raise self._refused(status, text[:MAX_SHOWN], where)

    def _refused(self, status: int, shown: str, where: str) -> WrpoError:
        if status in {401, 403}:
            verb = "Correct" if self._has_key else "Set"
            return ConfigError(
                self._endpoint_field,
                self.identity,
                f"the judge refuses the key with HTTP {status}",
                f"{verb} {KEY_VARIABLE} in the judge's pod from a Secret.",
                code="JudgeForbidden",
            )
        if status == 404:
            return ConfigError(
                self._model_field,
                self._model,
                f"POST {self.identity}{_PATH} returns HTTP 404: {shown}",
                "Write a model that the endpoint has, and the endpoint's base URL, e.g. https://host/v1.",
                code="JudgeModelNotFound",
            )
        if 300 <= status < 400:
            rule = f"POST {self.identity}{_PATH} is redirected with HTTP {status}, which would send the key elsewhere"
            hint = "Write the final URL as the endpoint."
        else:
            rule = f"the judge refuses {where} with HTTP {status}: {shown}"
            hint = (
                f"Correct the judge's settings. A field of {self._body_field} that is null removes one of the request."
            )
        return ConfigError(self._endpoint_field, self.identity, rule, hint, code="JudgeRefused")

    def _given_up(self, last: str, where: str, *, answers_others: bool) -> KeptReply:
        """Return that this question failed, if the server works; otherwise raise TemporaryError."""
        if answers_others or self._poster.replies(self._models_url):
            return KeptReply(content=shortened(last), finish_reason="", outcome=Outcome.FAILED)
        raise TemporaryError(
            f"the judge {self.identity} gave no reply to {where} in {self._retries.attempts} attempts: {last}",
            code="JudgeUnreachable",
            field=self._endpoint_field,
            hint="Check that the server runs and can be reached from the pod. The stage is retried; replies are kept.",
        )


def is_model(asked: str, reported: str) -> bool:
    """Return whether a reported name is that of the model asked for.

    A server that reports no name is believed. Upper and lower case are the same. Gateways and servers report a name
    with a provider or a path before it, or without: one of the two may have more before a slash. Hosted APIs report a
    dated version: gpt-4o-2024-08-06 for gpt-4o, and a date for `-latest`. A name with a date is that version alone.
    """
    if not reported:
        return True
    *before_asked, name = asked.casefold().strip("/").split("/")
    *before_reported, reported_name = reported.casefold().strip("/").split("/")
    shared = min(len(before_asked), len(before_reported))
    if before_asked[len(before_asked) - shared :] != before_reported[len(before_reported) - shared :]:
        return False
    base = name.removesuffix("-latest")
    is_dated = reported_name.startswith(base) and _DATED.fullmatch(reported_name.removeprefix(base)) is not None
    return reported_name == name or is_dated


def limits_of(runtime: Runtime, environ: Mapping[str, str]) -> RequestLimits:
    """Return the limits of a stage's requests."""
    return RequestLimits(
        section=judge_section(runtime),
        per_minute=runtime.judge_requests_per_minute,
        max_requests=runtime.judge_max_requests,
        quota_patience_s=seconds_of(environ, PATIENCE_VARIABLE, QUOTA_PATIENCE_S),
    )
