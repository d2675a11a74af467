"""Encoding of prompt and response for a reward model: one BOS, the model's own template, truncated to its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.scoring.rewards import MAIN_SECTION, Pair, row_name
from wrpo_engine.text.chat import Change, change_within, decoded, or_error, with_one_bos
from wrpo_engine.text.conversations import Prompt, messages_for, prompt_text
from wrpo_engine.text.plaintext import TextPair
from wrpo_engine.text.templates import TemplateFault, render, require_template, template_of
from wrpo_engine.text.turns import PROMPT_MARK, RESPONSE_MARK, answered, encoder_of

Truncation = Literal["Right", "Left", "Fail"]
_TEXTS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a pair, and token types where the model has them."""

    ids: list[int]
    types: list[int] | None
    truncated: bool
    change: Change | None = None
    """What the ids do not give back of the response's text; not compared if they are truncated."""


def last_occurrence(ids: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Return where the pattern begins for the last time, or None."""
    size, wanted = len(pattern), list(pattern)
    return next((at for at in range(len(ids) - size, -1, -1) if list(ids[at : at + size]) == wanted), None)


class PairEncoder:
    """Turns pairs into token ids.

    With a chat template the pair is a conversation of two turns; without one the tokenizer's own form for a pair of
    texts is taken, as encoders are trained on. The template writes what surrounds the response, and never the response,
    which it might change. `section` of the spec is the reward; errors name it.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        identity: str,
        max_length: int,
        truncation: Truncation = "Right",
        section: str = MAIN_SECTION,
    ) -> None:
        self._field = f"{section}.chatTemplate"
        self._tokenizer = tokenizer
        self._identity = identity
        self._max_length = max_length
        self._truncation = truncation
        self._template = or_error(lambda: template_of(tokenizer), field=self._field)
        self._plain = encoder_of(tokenizer, self._template)
        self._bos = tokenizer.bos_token_id
        self._border: list[int] = []

    def encode(self, pairs: Sequence[Pair], names: Sequence[str] | None = None) -> list[Encoded]:
        """Encode pairs; with truncation Fail a pair that is too long is an error that names it."""
        one_by_one = self._text_pairs if self._template is None else self._conversations
        encoded: list[Encoded] = []
        # Bounded: a fast tokenizer's result holds several times the memory of the ids alone.
        for start in range(0, len(pairs), _TEXTS_AT_ONCE):
            encoded.extend(one_by_one(pairs[start : start + _TEXTS_AT_ONCE]))
        if self._truncation == "Fail":
            self._refuse_truncated(encoded, names)
        return encoded

    def keep_border(self) -> list[int]:
        """Cut conversations from now on so that the tokens between the two turns stay; return its token ids."""
        self._border = self.between_turns()
        return self._border

    def between_turns(self) -> list[int]:
        """Return the token ids that the template writes between the prompt's text and the response's.

        In Llama 3's format: <|eot_id|><|start_header_id|>assistant<|end_header_id|> and two line breaks.
        """
        _, found_prompt, rest = self._form(PROMPT_MARK).partition(PROMPT_MARK)
        between, found_response, _ = rest.partition(RESPONSE_MARK)
        if not found_prompt or not found_response or not between:
            raise ConfigError(
                self._field,
                "<the model's>",
                f"the chat template of {self._identity} does not write the prompt, then something, then the response",
                f"Set {self._field} to the template that the reward model was trained with.",
                code="ChatTemplateFailed",
            )
        return self._plain.encode([between])[0]

    def _conversations(self, pairs: Sequence[Pair]) -> list[Encoded]:
        hide = self._plain.hide
        forms = {prompt: self._form(self._hidden(prompt)) for prompt, _ in pairs}
        texts = [forms[prompt].replace(RESPONSE_MARK, hide(response)) for prompt, response in pairs]
        rows = [with_one_bos(self._tokenizer, ids) for ids in self._plain.encode(texts)]
        return [self._checked(self._cut(ids), response) for ids, (_, response) in zip(rows, pairs, strict=True)]

    def _checked(self, encoded: Encoded, response: str) -> Encoded:
        if encoded.truncated:
            return encoded
        return replace(encoded, change=change_within(response, decoded(self._tokenizer, encoded.ids)))

    def _cut(self, ids: list[int]) -> Encoded:
        if len(ids) <= self._max_length:
            return Encoded(ids, None, truncated=False)
        cut = self._plain_cut(ids)
        at = last_occurrence(ids, self._border) if self._border else None
        if at is None or len(self._border) >= self._max_length or last_occurrence(cut, self._border) is not None:
            return Encoded(cut, None, truncated=True)
        prompt, response = ids[:at], ids[at + len(self._border) :]
        kept_prompt, kept_response = self._shares(len(prompt), len(response))
        if self._truncation == "Left":
            bos = prompt[:1] if prompt[:1] == [self._bos] and kept_prompt > 1 else []
            prompt = bos + prompt[len(prompt) - kept_prompt + len(bos) :]
        return Encoded(prompt[:kept_prompt] + self._border + response[:kept_response], None, truncated=True)

    def _shares(self, prompt: int, response: int) -> tuple[int, int]:
        """Return how many tokens of each turn stay next to the border: the shorter one whole where it fits in half."""
        room = self._max_length - len(self._border)
        kept_response = min(response, max(room - prompt, room // 2))
        return min(prompt, room - kept_response), kept_response

    def _plain_cut(self, ids: list[int]) -> list[int]:
        if self._truncation == "Left":
            head = ids[:1] if ids[0] == self._bos and self._max_length > 1 else []
            return head + ids[len(ids) - self._max_length + len(head) :]
        return ids[: self._max_length]

    def _hidden(self, prompt: Prompt) -> Prompt:
        hide = self._plain.hide
        return hide(prompt) if isinstance(prompt, str) else tuple((role, hide(content)) for role, content in prompt)

    def _text_pairs(self, pairs: Sequence[Pair]) -> list[Encoded]:
        encoded = []
        texts = [(prompt_text(prompt), response) for prompt, response in pairs]
        for pair, (ids, types) in zip(texts, self._plain.encode_pairs(texts), strict=True):
            if len(ids) > self._max_length:
                encoded.append(self._cut_text_pair(pair))
            else:
                encoded.append(self._checked(Encoded(ids, types, truncated=False), pair[1]))
        return encoded

    def _cut_text_pair(self, pair: TextPair) -> Encoded:
        """Cut the longer text first; Left begins with the prompt's beginning and touches the response last."""
        side: str = "right"
        strategy: str = "longest_first"
        if self._truncation == "Left":
            side = "left"
            ((response, _),) = self._plain.encode_pairs([("", pair[1])])
            strategy = "only_first" if len(response) < self._max_length else "longest_first"
        ((ids, types),) = self._plain.encode_pairs(
            [pair], truncation=strategy, max_length=self._max_length, truncation_side=side
        )
        return Encoded(ids, types, truncated=True)

    def _form(self, prompt: Prompt) -> str:
        """Return the conversation with a prompt, hidden, and a mark for the response."""

        def written() -> str:
            template = require_template(self._tokenizer)
            messages = answered(messages_for(self._tokenizer, template, prompt), RESPONSE_MARK)
            text = render(self._tokenizer, messages, template, generation=False, what="a prompt with its response")
            if RESPONSE_MARK not in text:
                raise TemplateFault(
                    f"the chat template of {self._identity} leaves the response out",
                    "Set {field} to the template that the reward model was trained with.",
                )
            return text

        return or_error(written, field=self._field)

    def _refuse_truncated(self, encoded: Sequence[Encoded], names: Sequence[str] | None) -> None:
        for index, row in enumerate(encoded):
            if row.truncated:
                raise DataError(
                    f"{row_name(names, index)} has more tokens with its prompt than the {self._max_length} that "
                    f"{self._identity} may read",
                    code="RewardInputTooLong",
                    field="reward.truncation",
                    hint="Raise reward.maxLength, set reward.truncation to Right or Left, or sample shorter responses.",
                )
