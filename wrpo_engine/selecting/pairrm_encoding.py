"""Token ids of a pair of candidates as PairRM reads them (arXiv:2306.02561).

[CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> left [SEP] [CLS] <|candidate2|> right [SEP]

Each text is encoded and truncated by itself, once, however many pairs it is part of. A text that spells one of these
tokens is encoded as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_engine.errors import ConfigError
from wrpo_engine.text.plaintext import PlainEncoder, control_tokens

SECTION = "select"
FIELD = f"{SECTION}.ranker"
"""Of the spec, for error messages."""
SOURCE, LEFT, RIGHT = "<|source|>", "<|candidate1|>", "<|candidate2|>"
PREFIXES = (SOURCE, LEFT, RIGHT, "<|candidate|>")
"""Tokens that the published models add to their tokenizer, in this order; the last one occurs in no pair."""
MIN_TOKENS = 3
"""Of a text without content: [CLS], its prefix and [SEP]."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Maximum lengths in tokens, special tokens included."""

    source: int
    """Of the prompt."""
    total: int
    """Of the whole pair."""
    candidate: int | None = None
    """Of each candidate. None: half of what the prompt leaves of the total."""

    def of_candidate(self, source_tokens: int) -> int:
        """Return the maximum length of each candidate next to a prompt of this length."""
        left = (self.total - source_tokens) // 2
        return left if self.candidate is None else min(self.candidate, left)

    def within(self, limit: int) -> Budget:
        """Return a budget of at most `limit` tokens in all, in which the texts have the same shares."""
        if self.total <= limit:
            return self
        candidate = None if self.candidate is None else self.candidate * limit // self.total
        return Budget(self.source * limit // self.total, limit, candidate)

    def check(self) -> None:
        """Raise ConfigError if a text would lose its prefix or its end."""
        for name, tokens in (
            ("maxSourceTokens", self.source),
            ("maxCandidateTokens", self.candidate),
            ("maxLength", self.of_candidate(self.source)),
        ):
            if tokens is not None and tokens < MIN_TOKENS:
                raise ConfigError(
                    f"{SECTION}.{name}",
                    {"maxLength": self.total}.get(name, tokens),
                    f"it leaves {max(tokens, 0)} tokens for a text, but [CLS], its prefix and [SEP] are {MIN_TOKENS}",
                    "Raise it; the published lengths are 1224 for the prompt and 2048 in all.",
                )


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """The texts of one item."""

    source: list[int]
    left: list[list[int]]
    """Ids of each candidate on the left; on the right they differ in the prefix alone."""
    right: list[list[int]]
    source_cut: bool
    cut: list[bool]
    """Whether each candidate was truncated."""

    def length(self, left: int, right: int) -> int:
        """Return the number of tokens of a pair."""
        return len(self.source) + len(self.left[left]) + len(self.right[right])

    def pair(self, left: int, right: int) -> list[int]:
        """Return the ids of two candidates with the prompt."""
        return [*self.source, *self.left[left], *self.right[right]]


class PairRmEncoder:
    """Encodes the prompt and the candidates of an item. `field` of the spec is the ranker; errors name it."""

    def __init__(self, tokenizer: Any, budget: Budget, *, identity: str, field: str = FIELD) -> None:
        budget.check()
        tokenizer.add_tokens([prefix for prefix in PREFIXES if prefix not in tokenizer.get_vocab()])
        self._budget = budget
        self._plain = PlainEncoder(tokenizer, control_tokens(tokenizer, PREFIXES))
        self._cls, self._sep = (_required(tokenizer, name, identity, field) for name in ("cls", "sep"))
        self.source_id, self.left_id, self.right_id = tokenizer.convert_tokens_to_ids([SOURCE, LEFT, RIGHT])

    @property
    def prefix_ids(self) -> tuple[int, int, int]:
        """Token ids of the prefixes of prompt, left and right candidate."""
        return self.source_id, self.left_id, self.right_id

    def encode(self, prompt: str, candidates: Sequence[str]) -> EncodedItem:
        """Encode an item's prompt and candidates."""
        hide = self._plain.hide
        texts = [SOURCE + hide(prompt), *(LEFT + hide(candidate) for candidate in candidates)]
        source, *encoded = self._plain.encode(texts)
        ids, source_cut = self._closed(source, self._budget.source)
        room = self._budget.of_candidate(len(ids))
        closed = [self._closed(candidate, room) for candidate in encoded]
        return EncodedItem(
            source=ids,
            left=[candidate for candidate, _ in closed],
            right=[[self.right_id if token == self.left_id else token for token in text] for text, _ in closed],
            source_cut=source_cut,
            cut=[is_cut for _, is_cut in closed],
        )

    def _closed(self, ids: list[int], limit: int) -> tuple[list[int], bool]:
        """Return ids between [CLS] and [SEP], truncated at the end, and whether they were."""
        room = limit - 2
        return [self._cls, *ids[:room], self._sep], len(ids) > room


def _required(tokenizer: Any, name: str, identity: str, field: str) -> int:
    token = getattr(tokenizer, f"{name}_token_id")
    if token is None:
        raise ConfigError(
            field,
            identity,
            f"its tokenizer has no {name.upper()} token, which separates the texts of a pair",
            "Use the tokenizer that the ranker was trained with.",
            code="TokenizerInvalid",
        )
    return int(token)
