"""Judge prompts: messages made from a bundle's templates. Values are never read as templates."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wrpo_engine.errors import DataError
from wrpo_engine.judging.protocol import Item, Message

_FIELD = re.compile(r"\{\{|\}\}|\{(\w+)\}")
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_THOUGHTS = re.compile(r"\A\s*<think>(?:.*?</think>|.*\Z)", re.DOTALL)


def fill(template: str, values: Mapping[str, str], *, name: str) -> str:
    """Return a template of `str.format` with its fields replaced in one pass; doubled braces become single ones.

    Raises DataError, naming the template, for a field without a value.
    """

    def replaced(match: re.Match[str]) -> str:
        field = match.group(1)
        if field is None:
            return match.group(0)[0]
        if field not in values:
            raise DataError(
                f"judge prompt {name!r} has the field {{{field}}}, but there is a value only for: "
                f"{', '.join(sorted(values))}",
                code="JudgePromptField",
                hint="Correct the template; literal braces are written twice.",
            )
        return values[field]

    return _FIELD.sub(replaced, template)


def chatml_messages(template: str, values: Mapping[str, str], *, name: str) -> tuple[Message, ...]:
    """Return the messages of a ChatML template. Braces have no meaning in it but around the names of `values`.

    The template is divided before values are inserted, so an answer with ChatML's marks cannot end its message.
    """
    parts = _CHATML.findall(template)
    if not parts:
        raise DataError(
            f"judge prompt {name!r} is not ChatML: it has no <|im_start|>ROLE .. <|im_end|>",
            code="JudgePromptFormat",
            hint="Use the original file, alpaca_eval_clf.txt.",
        )
    fields = re.compile(r"\{(" + "|".join(map(re.escape, values)) + r")\}")
    return tuple(
        {"role": role, "content": fields.sub(lambda match: values[match.group(1)], content.strip())}
        for role, content in parts
    )


def chat(system: str, user: str) -> tuple[Message, ...]:
    """Return a user's message after a system message, if that has a text."""
    first: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
    return (*first, {"role": "user", "content": user})


def question_of(item: Item) -> str:
    """Return the text that a judge of one turn sees: the prompt, after the conversation before it if there is one."""
    if not item.messages:
        return item.turns[0]
    turns = [*item.messages, {"role": "user", "content": item.turns[0]}]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def baseline_of(item: Item) -> str:
    """Return the baseline's answer; DataError if the item has none."""
    if not item.baseline:
        raise DataError(
            f"item {item.item_id} has no baseline answer",
            code="BaselineMissing",
            hint="Put the baseline's answers into the bundle, or name a system as the baseline.",
        )
    return item.baseline[0]


def without_thoughts(text: str) -> str:
    """Return a reply without the thoughts at its start that a server has not separated."""
    return _THOUGHTS.sub("", text)
