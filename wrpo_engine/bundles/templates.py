"""Judge prompts of a bundle by name, the fields that they must have, and the texts that enclose an answer in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from wrpo_engine.contract.benchmarks import Protocol
from wrpo_engine.errors import DataError

ALPACA_PROMPT = "alpaca_eval_clf"
"""AlpacaEval2: the original ChatML text."""
ALPACA_FIELDS = ("instruction", "output_1", "output_2")
ARENA_USER = "user"
ARENA_SYSTEM = "system"
"""Arena-Hard: the system message; `system/CATEGORY` comes before it for items of that category."""
ARENA_CONTINUE = "continue"
"""Arena-Hard: the message that asks for a missing verdict; optional."""
ARENA_OLD_FIELDS = ("question_1", "answer_1", "answer_2")
ARENA_NEW_FIELDS = ("QUESTION", "ANSWER_A", "ANSWER_B")
_TWO_TURNS = ("question_1", "question_2", "answer_1", "answer_2")
MT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "single-v1": ("question", "answer"),
    "single-math-v1": ("question", "answer", "ref_answer_1"),
    "single-v1-multi-turn": _TWO_TURNS,
    "single-math-v1-multi-turn": (*_TWO_TURNS, "ref_answer_1", "ref_answer_2"),
}
"""MTBench: each prompt is there as NAME/system and NAME/user."""
MT_NEEDS_REFERENCE = frozenset({"math", "reasoning", "coding", "arena-hard-200"})
"""MTBench: categories whose judge sees a reference answer."""
_ARENA_MARKS = ("<|The End of Assistant A's Answer|>", "<|The End of Assistant B's Answer|>", "<|User Prompt|>")
DELIMITERS: Mapping[Protocol, tuple[str, ...]] = {
    "AlpacaEval2": ('"""',),
    "ArenaHard": _ARENA_MARKS,
    "ArenaHardV2": _ARENA_MARKS,
    "MTBench": (
        "[The End of Assistant's Answer]",
        "[The Start of Reference Answer]",
        "<|The End of Assistant A's Conversation with User|>",
    ),
}
"""An answer or prompt that holds one of them can pretend to end there."""
_HINT = 'Put the judge prompts into the bundle; the guide "Files of benchmarks" names the files.'
_ALPACA_HINT = (
    "Put alpaca_eval_clf.txt of alpaca-eval 0.6.6 into the bundle, or install that package in the image without its "
    "dependencies."
)
MAX_TURNS: Mapping[Protocol, int] = {"AlpacaEval2": 1, "ArenaHard": 1, "ArenaHardV2": 1, "MTBench": 2}
"""Turns of an item that the judge prompts can show."""


def check_templates(protocol: Protocol, templates: Mapping[str, str]) -> None:
    """Raise DataError if a judge prompt of the protocol is missing or lacks a field."""
    match protocol:
        case "AlpacaEval2":
            _require_fields(
                template_named(templates, ALPACA_PROMPT, hint=_ALPACA_HINT), ALPACA_FIELDS, name=ALPACA_PROMPT
            )
        case "ArenaHard" | "ArenaHardV2":
            template = template_named(templates, ARENA_USER)
            fields = ARENA_NEW_FIELDS if "{QUESTION}" in template else ARENA_OLD_FIELDS
            _require_fields(template, fields, name=ARENA_USER)
        case "MTBench":
            for name, needed in MT_FIELDS.items():
                template_named(templates, f"{name}/system")
                _require_fields(template_named(templates, f"{name}/user"), needed, name=f"{name}/user")
        case _:
            assert_never(protocol)


def template_named(templates: Mapping[str, str], name: str, *, hint: str = _HINT) -> str:
    """Return a template; DataError names it and those that exist."""
    if name not in templates:
        present = ", ".join(sorted(templates)) or "none"
        raise DataError(
            f"the bundle has no judge prompt {name!r}; it has: {present}",
            code="JudgePromptMissing",
            hint=hint,
        )
    return templates[name]


def _require_fields(template: str, fields: Iterable[str], *, name: str) -> None:
    """Raise DataError if a field does not occur in a template: the judge would not see what it judges."""
    missing = [field for field in fields if f"{{{field}}}" not in template]
    if missing:
        raise DataError(
            f"judge prompt {name!r} lacks the field {{{missing[0]}}}",
            code="JudgePromptField",
            hint="Correct the template in the bundle.",
        )
