"""Prompts of a mixture of models: the references are part of the system message. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Message = Mapping[str, str]

INSTRUCTION = (
    "You have been provided with a set of responses from various open-source models to the latest user query. "
    "Your task is to synthesize these responses into a single, high-quality response. It is crucial to critically "
    "evaluate the information provided in these responses, recognizing that some of it may be biased or incorrect. "
    "Your response should not simply replicate the given answers but should offer a refined, accurate, and "
    "comprehensive reply to the instruction. Ensure your response is well-structured, coherent, and adheres to the "
    "highest standards of accuracy and reliability.\n\n"
    "Responses from models:"
)
"""Text before the references, from Mixture-of-Agents (Together AI, Apache-2.0)."""


def with_references(messages: Sequence[Message], references: Sequence[str]) -> list[Message]:
    """Return a conversation whose system message holds the references, numbered from 1.

    References without text are left out, and the numbers have no gaps. Without any reference the conversation does not
    change. An existing system message stays in front, before a blank line.
    """
    present = [reference for reference in references if reference.strip()]
    if not present:
        return list(messages)
    text = INSTRUCTION + "".join(f"\n{number}. {reference}" for number, reference in enumerate(present, 1))
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def longest_prefix(text: str, limit: int, count_tokens: Callable[[str], int]) -> str:
    """Return the beginning of a text that has at most `limit` tokens; all of it if it has no more."""
    if count_tokens(text) <= limit:
        return text
    fitting, exceeding = 0, len(text)
    while exceeding - fitting > 1:
        middle = (fitting + exceeding) // 2
        if count_tokens(text[:middle]) <= limit:
            fitting = middle
        else:
            exceeding = middle
    return text[:fitting]
