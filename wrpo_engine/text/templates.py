"""Chat templates: lookup for a tokenizer, and rendering. Errors name the template that fails."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError

from wrpo_engine.errors import ConfigError, first_line

Message = dict[str, str]

_TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""Fixed date for templates that print today's date, so that sampling and training see the same prompt. It is the
default of Llama 3.2's template."""
_MAX_OWN_CHARACTERS = 1 << 20
_MAX_GROWTH = 64
"""Maximum of characters that a template writes, as a multiple of the messages' and its own characters."""
_MAX_SHOWN = 300
_SURROGATES = re.compile("[\ud800-\udfff]")


class TemplateFault(Exception):  # noqa: N818 (a fault of the template, not of the program)
    """A fault of a chat template; `error` names the field that corrects it, also as {field} in the hint."""

    def __init__(self, rule: str, hint: str, *, code: str = "ChatTemplateFailed", value: str | None = None) -> None:
        super().__init__(rule)
        self.rule, self.hint, self.code, self.value = rule, hint, code, value

    def error(self, field: str, *, is_set: bool = False) -> ConfigError:
        """Return the error that names the field; `is_set`: the experiment sets it."""
        shown = self.value or ("<set>" if is_set else "<the model's>")
        return ConfigError(field, shown, self.rule, self.hint.replace("{field}", field), code=self.code)


def template_of(tokenizer: Any, template: str | None = None) -> str | None:
    """Return the effective chat template: the given one, else the tokenizer's; of several the one named `default`.

    None if there is none. TemplateFault if there are several and none is the default, or if it is not a text.
    """
    found = tokenizer.chat_template if template is None else template
    if isinstance(found, dict):
        if "default" not in found:
            names = ", ".join(sorted(map(str, found)))
            raise TemplateFault(
                f"the tokenizer of {tokenizer.name_or_path} has the chat templates {names}, "
                "and none of them is named default",
                "Set {field} to the text of the one that the model was trained with.",
                code="ChatTemplateAmbiguous",
            )
        found = found["default"]
    if found is not None and not isinstance(found, str):
        raise TemplateFault(
            f"the chat template of {tokenizer.name_or_path} is of type {type(found).__name__}, not a text",
            "Set {field}, or correct chat_template in the model's tokenizer_config.json.",
        )
    return found or None


def require_template(tokenizer: Any, template: str | None = None) -> str:
    """Return the effective chat template; TemplateFault if there is none."""
    found = template_of(tokenizer, template)
    if found is None:
        raise TemplateFault(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template",
            "Set {field}, or use an instruction-tuned model.",
            code="MissingChatTemplate",
            value="<unset>",
        )
    return found


def render(
    tokenizer: Any, messages: Sequence[Message], template: str, *, generation: bool, what: str = "the messages"
) -> str:
    """Return what a template writes; TemplateFault if it refuses `what` or fails in any other way."""
    name = tokenizer.name_or_path
    if _writes_without_end(template):
        raise TemplateFault(f"the chat template of {name} writes more than {_MAX_OWN_CHARACTERS} characters", _HINT)
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=generation,
            strftime_now=template_date,
        )
    except TemplateError as error:
        rule = f"the chat template of {name} refuses {what}: {first_line(error)}"
        raise TemplateFault(rule, _HINT) from error
    except Exception as error:  # (a template is a program: it may raise anything)
        rule = f"the chat template of {name} fails on {what} with {type(error).__name__}: {first_line(error)}"
        raise TemplateFault(rule, _HINT) from error
    written = str(text)
    if _SURROGATES.search(written):
        raise TemplateFault(f"the chat template of {name} writes half of a surrogate pair, which is not text", _HINT)
    given = sum(len(message["content"]) for message in messages)
    if len(written) > _MAX_OWN_CHARACTERS + _MAX_GROWTH * given:
        raise TemplateFault(f"the chat template of {name} makes {len(written)} characters of {given}", _HINT)
    return written


@lru_cache(maxsize=32)
def _writes_without_end(template: str) -> bool:
    """Return whether a template writes more for one short message than memory should hold; other faults are ignored."""
    from transformers.utils import chat_template_utils

    size = 0
    try:
        compiled = chat_template_utils._compile_jinja_template(template)  # noqa: SLF001 (no public function streams)
        for part in compiled.generate(messages=[{"role": "user", "content": "a"}], add_generation_prompt=True):
            size += len(part)
            if size > _MAX_OWN_CHARACTERS:
                return True
    except Exception:  # noqa: BLE001 (a template is a program: it may raise anything; rendering says what)
        return False
    return False


_HINT = "Set {field} to a template that takes a user's message and an assistant's."


def template_date(pattern: str) -> str:
    """Return the one date that chat templates see as today's; `strftime_now` of their environment."""
    return _TODAY.strftime(pattern)
