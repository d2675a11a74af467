"""What is kept of a judge's reply, and the reading of it from the body of a chat completion."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wrpo_engine.judging.protocol import Outcome, Reply

MAX_RAW_BYTES = 64 << 10
"""Longest text of a reply that is kept."""
_HEAD_BYTES = 16 << 10
_LOWEST_LOGPROB = -9999.0
"""What servers write for a probability of 0; JSON has no infinity."""
_HIGHEST_LOGPROB = 1e-3
"""0 and rounding: what is above it is no probability."""
_MAX_COUNT = 2**53
"""Token counts above it are no counts, and do not fit into the artifact."""
_ERROR_STATUS = re.compile(r"[45][0-9]{2}")
_THOUGHTS, _THOUGHTS_END = "<think>", "</think>"


class UnusableReply(Exception):  # noqa: N818 (one of several outcomes of a request)
    """A reply with status 200 that is not a chat completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReply:
    """A reply as the artifact keeps it: verdicts can be read from it again without a request."""

    content: str
    """Text as the judge wrote it, at most MAX_RAW_BYTES: of a longer one the middle is left out."""
    finish_reason: str = "stop"
    logprobs: Mapping[str, float] | None = None
    """Token -> log probability at the first position of the answer; None if the reply has none."""
    is_refusal: bool = False
    model: str = ""
    """Name of the model that the server reports."""
    reasoning: str = ""
    """Reasoning that the server separates."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    outcome: Outcome = Outcome.OK
    """too_long or failed for a request without a usable reply; `content` then says what the server said."""

    def as_reply(self) -> Reply:
        """Return what a protocol reads."""
        return Reply(
            text=answer_of(self.content),
            finish_reason=self.finish_reason,
            top_logprobs=self.logprobs,
            is_refusal=self.is_refusal,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it: the fields that differ from their defaults, and the text."""
        return {name: value for name, value in asdict(self).items() if name == "content" or value != _DEFAULTS[name]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> KeptReply:
        """Return the reply that `to_dict` wrote."""
        return cls(**{**content, "outcome": Outcome(content.get("outcome", Outcome.OK))})


_DEFAULTS = asdict(KeptReply(content=""))


def to_raw(replies: Sequence[KeptReply]) -> str:
    """Return the replies of all rounds as the JSON of the column `raw`."""
    return json.dumps([reply.to_dict() for reply in replies], ensure_ascii=False)


def from_raw(raw: str) -> list[KeptReply]:
    """Return the replies of the column `raw`."""
    return [KeptReply.from_dict(content) for content in json.loads(raw)]


def answer_of(content: str) -> str:
    """Return a text without the thoughts before it; empty if they do not end."""
    before, end, after = content.rpartition(_THOUGHTS_END)
    if end:
        # Chat templates may open the thoughts themselves, so a reply may have the end alone.
        return after.lstrip() if before.count(_THOUGHTS) <= 1 or before.lstrip().startswith(_THOUGHTS) else content
    return "" if content.lstrip().startswith(_THOUGHTS) else content


def shortened(text: str) -> str:
    """Return a text of at most MAX_RAW_BYTES in UTF-8: the begin and the end, where verdicts are."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= MAX_RAW_BYTES:
        return data.decode()
    mark = f"\n... {len(data) - MAX_RAW_BYTES} bytes left out ...\n"
    head = data[:_HEAD_BYTES].decode("utf-8", "ignore")
    tail = data[len(data) - (MAX_RAW_BYTES - _HEAD_BYTES - len(mark)) :].decode("utf-8", "ignore")
    return f"{head}{mark}{tail}"


def read_completion(body: bytes, *, has_logprobs: bool) -> KeptReply:
    """Read a chat completion; UnusableReply if it is none. `has_logprobs`: log probabilities were asked for.

    The reply is paid for: what is malformed apart from its text counts as absent, so that it is not asked for again.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message = choice["message"]
        content = _text(message.get("content"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        shown = body[:300].decode("utf-8", "replace")
        raise UnusableReply(f"the reply is not a chat completion: {shown}") from error
    refusal = message.get("refusal") or _refusal_part(message.get("content"))
    usage = _mapping(completion.get("usage"))
    finish = choice.get("finish_reason")
    return KeptReply(
        content=shortened(content or _known_text(refusal)),
        finish_reason=_plain(finish) if isinstance(finish, str) else "",
        logprobs=_logprobs(choice.get("logprobs")) if has_logprobs else None,
        is_refusal=bool(refusal) or finish == "content_filter",
        model=_plain(str(completion.get("model") or "")),
        reasoning=shortened(_known_text(message.get("reasoning_content") or message.get("reasoning"))),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def error_status(body: bytes) -> int | None:
    """Return the HTTP status that the body of a reply reports although its own is 200, as gateways do; else None."""
    if b'"error"' not in body:
        return None
    try:
        completion = _mapping(json.loads(body))
    except (ValueError, RecursionError):
        return None
    choices = completion.get("choices")
    first = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
    code = str(_mapping(completion.get("error") or first.get("error")).get("code"))
    return int(code) if _ERROR_STATUS.fullmatch(code) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _plain(text: str) -> str:
    """Return a text that UTF-8 can hold: halves of surrogate pairs are written with escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(map(_text_of_part, content))
    raise TypeError


def _known_text(content: object) -> str:
    return _text(content) if isinstance(content, str | list) else ""


def _text_of_part(part: object) -> str:
    text = part if isinstance(part, str) else _mapping(part).get("text")
    kind = _mapping(part).get("type", "text")
    return text if isinstance(text, str) and kind == "text" else ""


def _refusal_part(content: object) -> object:
    """Return the refusal in a content of parts."""
    parts = content if isinstance(content, list) else []
    return next((refusal for part in parts if (refusal := _mapping(part).get("refusal"))), None)


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT
    return value if is_count else None  # type: ignore[return-value]


def _logprobs(found: object) -> dict[str, float] | None:
    """Return the log probabilities at the first token of the answer; None without tokens, empty if one is no number."""
    content = _mapping(found).get("content")
    tokens = [each for each in content if "token" in _mapping(each)] if isinstance(content, list) else []
    if not tokens:
        return None
    position = tokens[_first_of_answer([str(each["token"]) for each in tokens])]
    top = position.get("top_logprobs")
    alternatives = [each for each in top if "token" in _mapping(each)] if isinstance(top, list) else []
    numbers: dict[str, float] = {}
    for each in alternatives or [position]:
        value = each.get("logprob")
        if value is None:
            continue
        if not _is_logprob(value):
            # Without it the others would decide alone.
            return {}
        token = _plain(str(each["token"]))
        numbers[token] = max(_LOWEST_LOGPROB, value, numbers.get(token, _LOWEST_LOGPROB))
    return numbers


def _is_logprob(value: object) -> bool:
    # Comparisons are exact also for integers that no float can hold, and false for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= _HIGHEST_LOGPROB


def _first_of_answer(tokens: Sequence[str]) -> int:
    """Return the position of the first token after the thoughts and white space; the first one without thoughts."""
    text = ""
    end = 0
    for index, token in enumerate(tokens):
        text += token
        if text.endswith(_THOUGHTS_END) or _THOUGHTS_END in token:
            end = index + 1
    if not end:
        return 0
    return next((index for index in range(end, len(tokens)) if tokens[index].strip()), len(tokens) - 1)
