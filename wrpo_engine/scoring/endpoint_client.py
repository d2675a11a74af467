"""Client of a reward server: request, retries, and the meaning of each reply."""

from __future__ import annotations

import json
import math
import random
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from wrpo_engine.config import RewardModel
from wrpo_engine.errors import ConfigError, DataError, Interrupted, TemporaryError, WrpoError
from wrpo_engine.retrying import Backoff, Tries, retry
from wrpo_engine.scoring.posting import (
    MAX_SHOWN,
    RETRIED,
    TRANSPORT_ERRORS,
    HttpFailure,
    Poster,
    ReplyTooLarge,
    key_of,
    split_endpoint,
)
from wrpo_engine.scoring.rewards import MAIN_SECTION, Pair, Reward
from wrpo_engine.text.conversations import prompt_messages

KEY_VARIABLE = "WRPO_REWARD_API_KEY"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Limits for the attempts of a request."""

    attempts: int = 8
    first_pause_s: float = 0.5
    max_pause_s: float = 30.0
    timeout_s: float = 120.0

    def pause(self, attempt: int, asked: float | None, jitter: Callable[[], float]) -> float:
        """Return the seconds before the next attempt: doubling with full jitter, or what the server asks for."""
        if asked is not None:
            # Jitter on top, so that waiting clients do not come back at once.
            return min(self.max_pause_s, asked) + jitter() * self.first_pause_s
        return Backoff(first_s=self.first_pause_s, longest_s=self.max_pause_s, least=0.0).pause(attempt, jitter)


@dataclass(frozen=True, kw_only=True)
class EndpointClient:
    """Asks one server for one reward at a time; safe to use from several threads."""

    identity: str
    url: str
    model: str | None
    chat_template: str | None = None
    key: str | None = field(default=None, repr=False)
    section: str = MAIN_SECTION
    """Of the spec: the reward."""
    retries: RetryPolicy = RetryPolicy()
    jitter: Callable[[], float] = random.random

    def reward(self, pair: Pair, row: str, stopped: threading.Event) -> Reward:
        """Return the reward of a pair; `row` names it in errors, `stopped` ends waiting."""
        body = self._body(pair)

        def next_pause(error: Exception, tries: Tries) -> float:
            if not isinstance(error, (HttpFailure, ReplyTooLarge, *TRANSPORT_ERRORS)):
                raise error
            last, asked = self._unanswered(error, row)
            if tries.failed + 1 >= self.retries.attempts:
                raise self._unavailable(last, row) from None
            return self.retries.pause(tries.failed, asked, self.jitter)

        def wait(_: Exception, pause: float) -> None:
            if stopped.wait(pause):
                raise Interrupted from None

        return retry(lambda: self._read(self._poster.post(body), row), next_pause=next_pause, wait=wait)

    def _unanswered(self, error: Exception, row: str) -> tuple[str, float | None]:
        """Return what a failure that may pass says, and the pause that the server asks for; raise for any other."""
        if isinstance(error, HttpFailure):
            if error.status not in RETRIED:
                raise self._refused(error.status, error.text, row) from None
            return str(error), error.retry_after_s
        return self._poster.redacted(f"{type(error).__name__}: {error}"), None

    def _unavailable(self, last: str, row: str) -> TemporaryError:
        return TemporaryError(
            f"reward endpoint {self.identity} gave no reward for {row} in {self.retries.attempts} attempts: {last}",
            code="RewardEndpointUnavailable",
            field=self._endpoint_field,
            hint="Check that the server runs and can be reached from the pod. The stage is retried.",
        )

    def _body(self, pair: Pair) -> bytes:
        prompt, response = pair
        body: dict[str, Any] = {
            "messages": [*prompt_messages(prompt), {"role": "assistant", "content": response}],
            "use_activation": False,
        }
        if self.model is not None:
            body["model"] = self.model
        if self.chat_template is not None:
            body["chat_template"] = self.chat_template
        return json.dumps(body).encode()

    @property
    def _endpoint_field(self) -> str:
        return f"{self.section}.endpoint"

    def _read(self, content: bytes, row: str) -> Reward:
        return reward_of(content, self.identity, row, field=self._endpoint_field)

    @cached_property
    def _poster(self) -> Poster:
        return Poster(self.url, key=self.key, timeout_s=self.retries.timeout_s)

    def _refused(self, code: int, text: str, row: str) -> WrpoError:
        shown = text[:MAX_SHOWN]
        if code in {401, 403}:
            return ConfigError(
                self._endpoint_field,
                self.identity,
                f"the server refuses the key with HTTP {code}",
                f"Set {KEY_VARIABLE} in the scoring pod from a Secret." if not self.key else f"Correct {KEY_VARIABLE}.",
                code="RewardEndpointForbidden",
            )
        if code in {400, 413, 422}:
            return DataError(
                f"reward endpoint {self.identity} refuses {row} with HTTP {code}: {shown}",
                code="RewardEndpointRefused",
                field=self._endpoint_field,
                hint="If the row is too long for the served model, raise its limit there or sample shorter responses.",
            )
        return ConfigError(
            self._endpoint_field,
            self.identity,
            f"POST {self.url} returns HTTP {code}: {shown}",
            f"Write the server's base URL without /v1, and its model in {self.section}.endpointModel; vLLM serves "
            "reward models with --runner pooling.",
            code="RewardEndpointInvalid",
        )


def make_client(reward: RewardModel, environ: Mapping[str, str], *, section: str = MAIN_SECTION) -> EndpointClient:
    """Return the client of the endpoint of a reward, which is `section` of the spec."""
    endpoint = reward.endpoint
    assert endpoint is not None
    parts = split_endpoint(
        endpoint, field=f"{section}.endpoint", key_variable=KEY_VARIABLE, code="RewardEndpointInvalid"
    )
    path = parts.path.rstrip("/")
    if not path.endswith(("/pooling", "/classify")):
        path += "/pooling"
    return EndpointClient(
        identity=endpoint,
        url=urllib.parse.urlunsplit(parts._replace(path=path)),
        model=reward.endpoint_model,
        chat_template=reward.chat_template,
        section=section,
        key=key_of(environ, KEY_VARIABLE, code="RewardEndpointForbidden"),
    )


def reward_of(content: bytes, identity: str, row: str, *, field: str) -> Reward:
    """Return the one number in a reply. DataError shows a reply without one, and names `field` of the spec."""
    try:
        answer = json.loads(content)
        entry = answer["data"][0] if "data" in answer else answer
        numbers = _numbers(entry)
        used = answer.get("usage") or {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _unreadable(identity, row, content, field) from error
    if len(numbers) != 1:
        raise DataError(
            f"reward endpoint {identity} gives {len(numbers)} numbers for {row}, but a reward model has one label",
            code="RewardEndpointInvalid",
            field=field,
            hint="Serve a sequence classifier with one label; an embedding or base model is not one.",
        )
    tokens = used.get("prompt_tokens")
    return Reward(score=numbers[0], num_tokens=tokens if isinstance(tokens, int) else None)


def _numbers(entry: Mapping[str, Any]) -> list[float]:
    value = entry[next((name for name in ("data", "probs") if name in entry), "score")]
    if isinstance(value, list) and value and isinstance(value[0], list):
        # One list a token: the reward is that of the last.
        value = value[-1]
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, int | float | None) for item in values):
        raise TypeError
    # JSON has no NaN; servers write null for it.
    return [math.nan if item is None else float(item) for item in values]


def _unreadable(identity: str, row: str, content: bytes, field: str) -> DataError:
    shown = content[:MAX_SHOWN].decode("utf-8", "replace")
    return DataError(
        f"reward endpoint {identity} sent a reply for {row} that holds no reward: {shown}",
        code="RewardEndpointInvalid",
        field=field,
        hint="It must be JSON as vLLM's /pooling gives: {data: [{data: [NUMBER]}]}.",
    )
