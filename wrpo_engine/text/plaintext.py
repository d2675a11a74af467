"""Encoding of data as token ids: a text is encoded as characters, even where it spells a control token.

Control tokens open and close turns and sequences. A chat template writes them; data must not, or a prompt could open a
system turn and a response could end before its end. Text that spells one is hidden while a template works on it
(`hide`). It is encoded by a copy of the tokenizer that knows the control tokens under other names (`encode`). Texts
without any are encoded by the tokenizer itself, with the same ids as without this module.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wrpo_engine.errors import DataError

TextPair = tuple[str, str]
TypedIds = tuple[list[int], list[int] | None]
"""Token ids and, where the tokenizer gives them, token types."""
_NONCE = f"wrpo{secrets.token_hex(8)}"
"""Data cannot contain it, because it is random. It is different in every process, and no token id depends on it."""
_HIDDEN = re.compile(rf"{_NONCE}h(\d+)q")


class ControlTokenInTextError(DataError):
    """A text spells a control token, and the tokenizer has no other ids for it."""

    code = "ControlTokenInText"

    def of(self, row: str) -> ControlTokenInTextError:
        """Return the error with the name of the row in front."""
        return ControlTokenInTextError(f"{row}: {self.message}", hint=self.hint)


@dataclass(frozen=True, eq=False)
class PlainEncoder:
    """Encodes texts of one tokenizer with one set of control tokens."""

    tokenizer: Any
    tokens: dict[str, int]
    """The control tokens: text -> id."""

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        return tuple(self.tokens)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        # The longest first, as tokenizers match added tokens.
        longest_first = sorted(self.tokens, key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    @cached_property
    def _guarded_ids(self) -> frozenset[int]:
        """The ids that no text may give; the one of unknown characters is given by texts that hold some."""
        return frozenset(self.tokens.values()) - {_unknown_id(self.tokenizer)}

    @cached_property
    def _copy(self) -> Any:
        return _renamed_copy(self.tokenizer, self.tokens)

    def holds_control_text(self, text: str) -> bool:
        """Return whether a text of data spells a control token."""
        return self._pattern is not None and self._pattern.search(text) is not None

    def hide(self, text: str) -> str:
        """Return a text of data with marks, which mean nothing to a template, in place of control tokens."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: f"{_NONCE}h{self._texts.index(found.group())}q", text)

    def reveal(self, text: str) -> str:
        """Return the text as it was before `hide`."""
        return _HIDDEN.sub(self._original, text) if _NONCE in text else text

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts in which templates wrote control tokens and data is hidden.

        No BOS or EOS is added. ControlTokenInTextError if the tokenizer cannot encode a control token's text as text.
        """
        encoded: list[list[int]] = [[] for _ in texts]
        plain = [index for index, text in enumerate(texts) if _NONCE not in text]
        for index, ids in zip(plain, _plain_ids(self.tokenizer, [texts[index] for index in plain]), strict=True):
            encoded[index] = ids
        # A normaliser may make a control token of other characters (full-width ones, another case).
        special = [index for index, text in enumerate(texts) if _NONCE in text or self._leaks(text, encoded[index])]
        for index in special:
            encoded[index] = self._encode_apart(texts[index])
        return encoded

    def encode_pairs(self, pairs: Sequence[TextPair], **options: Any) -> list[TypedIds]:
        """Return ids and token types of pairs of texts in the tokenizer's own form for a pair; nothing is hidden.

        `options` are those of the tokenizer's call, and `truncation_side`.
        """
        encoded = _pair_ids(self.tokenizer, pairs, options)
        special = [
            index
            for index, pair in enumerate(pairs)
            if any(map(self.holds_control_text, pair)) or self._count(encoded[index][0]) > self._in_a_pair
        ]
        tokenizer = self._copy or self.tokenizer
        again = _pair_ids(tokenizer, [pairs[index] for index in special], options | {"split_special_tokens": True})
        for index, typed in zip(special, again, strict=True):
            if self._count(typed[0]) > self._in_a_pair:
                raise self.impossible("a control token")
            encoded[index] = typed
        return encoded

    @cached_property
    def _in_a_pair(self) -> int:
        return self._count(_pair_ids(self.tokenizer, [("a", "a")], {})[0][0])

    def _original(self, found: re.Match[str]) -> str:
        return self._texts[int(found.group(1))]

    def _count(self, ids: Iterable[int]) -> int:
        return sum(map(self._guarded_ids.__contains__, ids))

    def _leaks(self, text: str, ids: Sequence[int]) -> bool:
        """Return whether there are more control tokens in the ids than the template wrote into the text."""
        count = self._count(ids)
        if not count or self._pattern is None:
            return False
        return count > sum(self.tokens[written] in self._guarded_ids for written in self._pattern.findall(text))

    def _encode_apart(self, text: str) -> list[int]:
        """Encode a text in which data spells control tokens."""
        attempts: list[Callable[[str], list[int]]] = [self._by_pieces]
        if self._copy is not None:
            attempts.insert(0, self._by_copy)
        for attempt in attempts:
            ids = attempt(text)
            if not self._leaks(text, ids):
                return ids
        found = sorted({self._original(mark) for mark in _HIDDEN.finditer(text)})
        raise self.impossible(" and ".join(found) or "a control token")

    def impossible(self, what: str) -> ControlTokenInTextError:
        """Return the error that a text spells `what` and cannot be encoded as text."""
        return ControlTokenInTextError(
            f"the tokenizer of {self.tokenizer.name_or_path} cannot encode {what}, written in a text, as text",
            hint="Remove or rewrite such texts (wrpo lint --tokenizer names the rows), or use a fast tokenizer "
            "(tokenizer.json).",
        )

    def _by_copy(self, text: str) -> list[int]:
        assert self._pattern is not None
        written = self._pattern.sub(lambda found: _new_name(self.tokens[found.group()]), text)
        return _plain_ids(self._copy, [self.reveal(written)])[0]

    def _by_pieces(self, text: str) -> list[int]:
        """Encode the parts of a text by themselves, each hidden control token cut after its first character."""
        parts: list[str] = [""]
        end = 0
        for mark in _HIDDEN.finditer(text):
            original = self._original(mark)
            parts[-1] += text[end : mark.start()] + original[:1]
            parts.append(original[1:])
            end = mark.end()
        parts[-1] += text[end:]
        return [token for ids in _plain_ids(self.tokenizer, [part for part in parts if part]) for token in ids]


def control_tokens(tokenizer: Any, further: Iterable[str] = ()) -> dict[str, int]:
    """Return the tokenizer's special tokens and further added ones, text -> id.

    Tokens of one character are not among them: some tokenizers call a line break or an exclamation mark their padding,
    and texts must still be able to hold it.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    texts = {str(text) for text in tokenizer.all_special_tokens}
    texts |= {str(token) for token in added.values() if getattr(token, "special", False)}
    texts |= set(further)
    known = {text: tokenizer.convert_tokens_to_ids(text) for text in sorted(texts) if len(text) > 1}
    return {text: int(token) for text, token in known.items() if token is not None}


def _plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [[int(token) for token in ids] for ids in found]


def _pair_ids(tokenizer: Any, pairs: Sequence[TextPair], options: Mapping[str, Any]) -> list[TypedIds]:
    if not pairs:
        return []
    own_side = tokenizer.truncation_side
    call = dict(options)
    tokenizer.truncation_side = call.pop("truncation_side", own_side)
    try:
        found = tokenizer([first for first, _ in pairs], [second for _, second in pairs], verbose=False, **call)
    finally:
        tokenizer.truncation_side = own_side
    ids = [[int(token) for token in row] for row in found["input_ids"]]
    types = found.get("token_type_ids")
    return list(zip(ids, [None] * len(ids) if types is None else map(list, types), strict=True))


def _unknown_id(tokenizer: Any) -> int | None:
    unknown = tokenizer.unk_token_id
    return None if unknown in {tokenizer.bos_token_id, tokenizer.eos_token_id} else unknown


def _new_name(token: int) -> str:
    return f"<{_NONCE}c{token}>"


def _renamed_copy(tokenizer: Any, tokens: dict[str, int]) -> Any:
    """Return a tokenizer that differs in the names of the control tokens only; None if there cannot be one."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if not getattr(tokenizer, "is_fast", False):
        return None
    names = {text: _new_name(token) for text, token in tokens.items()}
    try:
        state = _renamed(json.loads(tokenizer.backend_tokenizer.to_str()), names)
        backend = Tokenizer.from_str(json.dumps(state))
    except Exception:  # noqa: BLE001 (the library raises it itself, for example where merges make a control token)
        return None
    if any(backend.token_to_id(names[text]) != token for text, token in tokens.items()):
        return None
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=tokenizer.model_input_names)


def _renamed(state: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of a tokenizer.json with other names for some tokens, which keep their ids."""
    model = dict(state["model"])
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): token for text, token in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    added = [{**entry, "content": names.get(entry["content"], entry["content"])} for entry in state["added_tokens"]]
    return {**state, "model": model, "added_tokens": added, "truncation": None, "padding": None}
