"""The prompt and the answers in a judge's messages, by the marks of the original tools' templates.

An answer may hold such marks itself. The first begin and the last end count, so it cannot remove what comes before or
after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_engine.contract.benchmarks import Protocol


class UnknownQuestionError(ValueError):
    """Messages of no benchmark's template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a judge is asked: to compare two answers, or to rate one."""

    kind: Protocol
    prompt: str
    """With the turns before the answer in question, if there are several."""
    answers: tuple[str, ...]
    """Two, in the order of the messages; one for MTBench."""


_ALPACA = re.compile(
    r'"instruction": """(?P<prompt>.*?)""",\s*\}\s*## Model Outputs.*?'
    r'"model_identifier": "m",\s*"output": """(?P<first>.*?)"""\s*\},\s*'
    r'\{\s*"model_identifier": "M",\s*"output": """(?P<second>.*)"""\s*\}\s*\}\s*## Task',
    re.DOTALL,
)
_ARENA = re.compile(
    r"<\|User Prompt\|>\n(?P<prompt>.*?)\n+<\|The Start of Assistant A's Answer\|>\n(?P<first>.*?)\n"
    r"<\|The End of Assistant A's Answer\|>\s*<\|The Start of Assistant B's Answer\|>\n(?P<second>.*)\n"
    r"<\|The End of Assistant B's Answer\|>",
    re.DOTALL,
)
_SINGLE = re.compile(
    r"\[Question\]\n(?P<prompt>.*?)\n\n(?:\[The Start of Reference Answer\]\n.*?\n\[The End of Reference Answer\]\n\n)?"
    r"\[The Start of Assistant's Answer\]\n(?P<answer>.*)\n\[The End of Assistant's Answer\]",
    re.DOTALL,
)
_TURNS = re.compile(
    r"<\|The Start of Assistant A's Conversation with User\|>\s*### User:\n(?P<first>.*?)\n\n### Assistant A:\n"
    r"(?P<before>.*?)\n\n### User:\n(?P<prompt>.*?)\n\n### Assistant A:\n(?P<answer>.*)\n\n"
    r"<\|The End of Assistant A's Conversation with User\|>",
    re.DOTALL,
)


def parse_question(messages: Sequence[Mapping[str, Any]]) -> Question:
    """Return the question in the first user's message that has one; follow-ups to it may come later.

    Raises UnknownQuestionError if the messages are of no known template.
    """
    for text in [str(message.get("content")) for message in messages if message.get("role") == "user"]:
        for read in (_alpaca, _arena, _single, _turns):
            if (question := read(text)) is not None:
                return question
    raise UnknownQuestionError("the messages have no question of AlpacaEval, Arena-Hard or MT-Bench (single answers)")


def _alpaca(text: str) -> Question | None:
    found = _ALPACA.search(text)
    return found and Question(kind="AlpacaEval2", prompt=found["prompt"], answers=(found["first"], found["second"]))


def _arena(text: str) -> Question | None:
    found = _ARENA.search(text)
    return found and Question(kind="ArenaHard", prompt=found["prompt"], answers=(found["first"], found["second"]))


def _single(text: str) -> Question | None:
    found = _SINGLE.search(text)
    return found and Question(kind="MTBench", prompt=found["prompt"], answers=(found["answer"],))


def _turns(text: str) -> Question | None:
    found = _TURNS.search(text)
    if found is None:
        return None
    prompt = f"User: {found['first']}\n\nAssistant: {found['before']}\n\nUser: {found['prompt']}"
    return Question(kind="MTBench", prompt=prompt, answers=(found["answer"],))
