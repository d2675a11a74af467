"""Texts of a tokenizer's tokens in bytes, and where the tokens of a response begin in its text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_engine.fusing.positions import END, OUTSIDE

_BLANK = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_LONGEST_OPENING = 64
"""Bytes before a response's text that a template or a tokenizer may write."""


@dataclass(frozen=True)
class Vocabulary:
    """What a model's tokens mean."""

    texts: tuple[str | None, ...]
    """By id: the bytes of a token's text, one character each; without `has_bytes` the token as the tokenizer has it.
    None: special tokens, and ids that the tokenizer does not know."""
    end_of_turn: int
    has_bytes: bool
    """Whether the texts of a sequence's tokens, joined, are the bytes of its text."""

    @property
    def digest(self) -> str:
        """Digest of all that a map between vocabularies depends on."""
        facts = json.dumps([self.texts, self.end_of_turn, self.has_bytes])
        return hashlib.sha256(facts.encode()).hexdigest()


def vocabulary_of(tokenizer: Any, end_of_turn: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer."""
    kind = _decoder_kinds(tokenizer)
    added = dict(tokenizer.added_tokens_decoder.items())
    named: dict[str, int] = tokenizer.get_vocab()
    texts: list[str | None] = [None] * (max(named.values(), default=-1) + 1)
    bytes_of_glyph = _glyph_bytes() if "ByteLevel" in kind else None
    has_bytes = bytes_of_glyph is not None or _BLANK in kind
    special = set(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}
    for token, index in named.items():
        if index in special:
            continue
        if not has_bytes:
            texts[index] = token
        elif index in added:
            texts[index] = _latin(token.encode())
        elif bytes_of_glyph is not None:
            texts[index] = "".join(bytes_of_glyph.get(glyph, _latin(glyph.encode())) for glyph in token)
        elif "ByteFallback" in kind and (byte := _BYTE.fullmatch(token)):
            texts[index] = chr(int(byte.group(1), 16))
        else:
            texts[index] = _latin(token.replace(_BLANK, " ").encode(errors="surrogatepass"))
    if "ByteFallback" in kind:
        _leave_out_bytes_of_pieces(texts, named)
    return Vocabulary(tuple(texts), end_of_turn, has_bytes)


def _leave_out_bytes_of_pieces(texts: list[str | None], named: dict[str, int]) -> None:
    """Remove the texts of byte tokens that are pieces too: no text is encoded as these, and no map may prefer them."""
    bytes_ = {index for token, index in named.items() if _BYTE.fullmatch(token)}
    pieces = {text for index, text in enumerate(texts) if text is not None and index not in bytes_}
    for index in bytes_:
        if texts[index] in pieces:
            texts[index] = None


def _latin(data: bytes) -> str:
    return data.decode("latin-1")


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """Return the kinds of decoders of a fast tokenizer, and the mark of blanks if one replaces it; empty for others."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return set()
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    found: set[str] = set()
    for part in [decoder, *decoder.get("decoders", [])]:
        found.add(str(part.get("type")))
        if part.get("type") == "Metaspace" or (part.get("pattern") or {}).get("String") == _BLANK:
            found.add(_BLANK)
    return found


def _glyph_bytes() -> dict[str, str]:
    """Return the byte that each glyph of byte-level vocabularies stands for: printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): chr(byte) for byte in printable} | {
        chr(256 + place): chr(byte) for place, byte in enumerate(others)
    }


def label_starts(vocabulary: Vocabulary, ids: Sequence[int], response: str) -> list[int] | None:
    """Return for each token of a response the byte of its text at which it begins, or None if they do not give it.

    OUTSIDE: a token of the template, or the end of a turn after a truncated text. END: the end of the turn.
    """
    texts = [_text(vocabulary, index) for index in ids]
    joined, text = "".join(texts), _latin(response.encode())
    opening, is_cut = _opening(joined, text)
    if opening is None:
        return None
    starts: list[int] = []
    place = -opening
    for token in texts:
        stop = place + len(token)
        is_inside = token and stop > 0 and place < len(text)
        starts.append(max(place, 0) if is_inside else OUTSIDE)
        place = stop
    if ids and ids[-1] == vocabulary.end_of_turn:
        starts[-1] = OUTSIDE if is_cut else END
    return starts


def _text(vocabulary: Vocabulary, index: int) -> str:
    return (vocabulary.texts[index] if index < len(vocabulary.texts) else None) or ""


def _opening(joined: str, text: str) -> tuple[int | None, bool]:
    """Return the bytes before the text in what its tokens give, and whether the text is truncated; None if it differs.

    A blank at either end of the text may be the template's, which writes it only once.
    """
    found = joined.find(text, 0, _LONGEST_OPENING + len(text))
    if found >= 0:
        return found, False
    for opening in range(min(len(joined), _LONGEST_OPENING)):
        if text.startswith(joined[opening:]):
            return opening, True
    return None, False
