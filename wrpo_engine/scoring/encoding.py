"""Prompt and response as a reward model reads them: one BOS, the model's own template, cut to its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from wrpo_engine.chat import messages_of, template_date
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.scoring.rewards import Pair, row_name

Truncation = Literal["Right", "Left", "Fail"]
_TEXTS_AT_ONCE = 512
_PROMPT, _RESPONSE = "wrpo7sentinel7prompt", "wrpo7sentinel7response"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a pair, and token types where the model has them."""

    ids: list[int]
    types: list[int] | None
    truncated: bool


def last_occurrence(ids: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Return where the pattern begins for the last time, or None."""
    size, wanted = len(pattern), list(pattern)
    return next((at for at in range(len(ids) - size, -1, -1) if list(ids[at : at + size]) == wanted), None)


class PairEncoder:
    """Turns pairs into token ids.

    With a chat template the pair is a conversation of two turns; without one the tokenizer's own form for a pair of
    texts is taken, as encoders are trained on.
    """

    def __init__(self, tokenizer: Any, *, identity: str, max_length: int, truncation: Truncation = "Right") -> None:
        self._tokenizer = tokenizer
        self._identity = identity
        self._max_length = max_length
        self._truncation = truncation
        self._bos = tokenizer.bos_token_id
        self._adds_bos = self._bos is not None and self._first_id("a") == self._bos
        self._border: list[int] = []

    def encode(self, pairs: Sequence[Pair], names: Sequence[str] | None = None) -> list[Encoded]:
        """Encode pairs; with truncation Fail a pair that is too long is an error that names it."""
        one_by_one = self._conversations if self._tokenizer.chat_template else self._text_pairs
        encoded: list[Encoded] = []
        # Bounded: a fast tokenizer's result holds several times the memory of the ids alone.
        for start in range(0, len(pairs), _TEXTS_AT_ONCE):
            encoded.extend(one_by_one(pairs[start : start + _TEXTS_AT_ONCE]))
        if self._truncation == "Fail":
            self._refuse_truncated(encoded, names)
        return encoded

    def keep_border(self) -> list[int]:
        """Cut conversations from now on so that what stands between the two turns stays; return its token ids."""
        self._border = self.between_turns()
        return self._border

    def between_turns(self) -> list[int]:
        """Return the token ids that the template writes between the prompt's text and the response's.

        In Llama 3's format: <|eot_id|><|start_header_id|>assistant<|end_header_id|> and two line breaks.
        """
        text = self._render((_PROMPT, _RESPONSE))
        _, found_prompt, rest = text.partition(_PROMPT)
        between, found_response, _ = rest.partition(_RESPONSE)
        if not found_prompt or not found_response or not between:
            raise ConfigError(
                "reward.chatTemplate",
                "<the model's>",
                f"the chat template of {self._identity} does not write the prompt, then something, then the response",
                "Set reward.chatTemplate to the template that the reward model was trained with.",
                code="ChatTemplateFailed",
            )
        return self._ids([between])[0]

    def _conversations(self, pairs: Sequence[Pair]) -> list[Encoded]:
        return [self._cut(self._with_one_bos(ids)) for ids in self._ids([self._render(pair) for pair in pairs])]

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
        """Return how many tokens of each turn stay beside the border: the shorter one whole where it fits in half."""
        room = self._max_length - len(self._border)
        kept_response = min(response, max(room - prompt, room // 2))
        return min(prompt, room - kept_response), kept_response

    def _plain_cut(self, ids: list[int]) -> list[int]:
        if self._truncation == "Left":
            head = ids[:1] if ids[0] == self._bos and self._max_length > 1 else []
            return head + ids[len(ids) - self._max_length + len(head) :]
        return ids[: self._max_length]

    def _text_pairs(self, pairs: Sequence[Pair]) -> list[Encoded]:
        if not pairs:
            return []
        full = self._tokenizer([prompt for prompt, _ in pairs], [answer for _, answer in pairs], verbose=False)
        types = full.get("token_type_ids")
        encoded = []
        for index, ids in enumerate(full["input_ids"]):
            if len(ids) > self._max_length:
                encoded.append(self._cut_text_pair(pairs[index]))
            else:
                encoded.append(Encoded(list(ids), None if types is None else list(types[index]), truncated=False))
        return encoded

    def _cut_text_pair(self, pair: Pair) -> Encoded:
        """Cut the longer text first; Left begins with the prompt's beginning and touches the response last."""
        tokenizer = self._tokenizer
        side = tokenizer.truncation_side
        tokenizer.truncation_side = "left" if self._truncation == "Left" else "right"
        strategy: str = "longest_first"
        if self._truncation == "Left":
            response = len(tokenizer("", pair[1], verbose=False)["input_ids"])
            strategy = "only_first" if response < self._max_length else "longest_first"
        try:
            cut = tokenizer(*pair, truncation=strategy, max_length=self._max_length)
        finally:
            tokenizer.truncation_side = side
        types = cut.get("token_type_ids")
        return Encoded(list(cut["input_ids"]), None if types is None else list(types), truncated=True)

    def _render(self, pair: Pair) -> str:
        prompt, response = pair
        messages = [*messages_of(prompt), {"role": "assistant", "content": response}]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=template_date))
        except TemplateError as error:
            raise ConfigError(
                "reward.chatTemplate",
                "<the model's>",
                f"the chat template of {self._identity} refuses a prompt with its response: {error}",
                "Set reward.chatTemplate to one that takes a user's and an assistant's message.",
                code="ChatTemplateFailed",
            ) from error

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [[int(token) for token in ids] for ids in found]

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        start = 0
        while self._bos is not None and start < len(ids) and ids[start] == self._bos:
            start += 1
        if not start and not self._adds_bos:
            return ids
        return [self._bos, *ids[start:]]

    def _first_id(self, text: str) -> int | None:
        ids = self._tokenizer(text)["input_ids"]
        return int(ids[0]) if ids else None

    def _refuse_truncated(self, encoded: Sequence[Encoded], names: Sequence[str] | None) -> None:
        for index, row in enumerate(encoded):
            if row.truncated:
                raise DataError(
                    f"{row_name(names, index)} has more tokens with its prompt than the {self._max_length} that "
                    f"{self._identity} may read",
                    code="RewardInputTooLong",
                    field="reward.truncation",
                    hint="Raise reward.maxLength, set reward.truncation to Right or Left, or sample shorter answers.",
                )
