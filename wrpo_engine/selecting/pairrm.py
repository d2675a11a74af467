"""PairRM at work: the logits of all ordered pairs of candidates, in batches of pairs of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from wrpo_engine.hub.client import section_of
from wrpo_engine.hub.models import ResolvedModel, check_vocabulary, tokenizer_of
from wrpo_engine.loading.files import CONFIG_FILE
from wrpo_engine.scoring.batching import token_batches
from wrpo_engine.scoring.loading import weights_dtype
from wrpo_engine.scoring.network import CPU_BATCH_TOKENS
from wrpo_engine.selecting.pairrm_encoding import Budget, EncodedItem, PairRmEncoder
from wrpo_engine.selecting.pairrm_loading import load_pairrm

OnProgress = Callable[[int], None]
"""Called with the number of further pairs; an exception from it ends the work."""
_PREFIX_FIELDS = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")
"""Of config.json, in the order of prompt, left and right candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One ordered pair of an item's candidates, by their index."""

    left: int
    right: int
    logit: float
    """Above 0: the left one is better."""
    tokens: int
    padding: int
    """Padding tokens that were computed in addition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """All ordered pairs of one item."""

    comparisons: list[Comparison]
    prompt_cut: bool
    """Whether the prompt was truncated."""
    cut: list[bool]
    """Whether each candidate was truncated."""


@dataclass(frozen=True, slots=True)
class _Pair:
    item: int
    left: int
    right: int
    tokens: int


class PairRanker:
    """A loaded PairRM."""

    def __init__(self, model: ResolvedModel, budget: Budget, *, batch_tokens: int, dtype: str = "auto") -> None:
        self.identity, self.field = model.identity, model.field
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = load_pairrm(model, weights_dtype(dtype, self._device), self._device)
        config = self._network.config
        if getattr(config, "position_biased_input", True):
            budget = budget.within(int(config.max_position_embeddings))
        tokenizer = tokenizer_of(model, field=section_of(model.field), needs_template=False)
        self._encoder = PairRmEncoder(tokenizer, budget, identity=model.identity, field=model.field)
        check_vocabulary(model, tokenizer, [*self._encoder.prefix_ids, *tokenizer("?", verbose=False)["input_ids"]])
        _check_prefixes(model, config, self._encoder.prefix_ids)
        self._pad = int(config.pad_token_id or 0)
        self._batch_tokens = batch_tokens if self._device.type == "cuda" else min(batch_tokens, CPU_BATCH_TOKENS)

    def compare(
        self, items: Sequence[tuple[str, Sequence[str]]], on_progress: OnProgress = lambda _: None
    ) -> list[Compared]:
        """Return the logits of all ordered pairs of each item, which is a prompt and its candidates.

        A logit may be no finite number; the caller, who knows the items' names, checks them.
        """
        encoded = [self._encoder.encode(prompt, candidates) for prompt, candidates in items]
        pairs = [
            _Pair(item, left, right, texts.length(left, right))
            for item, texts in enumerate(encoded)
            for left, right in permutations(range(len(texts.left)), 2)
        ]
        comparisons: list[Comparison | None] = [None] * len(pairs)
        for batch, logits in self._outputs(encoded, pairs):
            width = max(pairs[index].tokens for index in batch)
            for index, logit in zip(batch, logits, strict=True):
                pair = pairs[index]
                comparisons[index] = Comparison(
                    left=pair.left, right=pair.right, logit=logit, tokens=pair.tokens, padding=width - pair.tokens
                )
            on_progress(len(batch))
        by_item: list[list[Comparison]] = [[] for _ in encoded]
        for pair, comparison in zip(pairs, comparisons, strict=True):
            assert comparison is not None
            by_item[pair.item].append(comparison)
        return [
            Compared(comparisons=found, prompt_cut=texts.source_cut, cut=texts.cut)
            for found, texts in zip(by_item, encoded, strict=True)
        ]

    def _outputs(
        self, encoded: Sequence[EncodedItem], pairs: Sequence[_Pair]
    ) -> Iterator[tuple[list[int], list[float]]]:
        """Run every batch; a result is read when the next batch is already under way on the device."""
        running: tuple[list[int], Tensor] | None = None
        for batch in token_batches([pair.tokens for pair in pairs], self._batch_tokens):
            ids = [encoded[pair.item].pair(pair.left, pair.right) for pair in map(pairs.__getitem__, batch)]
            logits = self._forward(ids)
            if running is not None:
                yield running[0], running[1].tolist()
            running = batch, logits
        if running is not None:
            yield running[0], running[1].tolist()

    def _forward(self, rows: Sequence[list[int]]) -> Tensor:
        """Return the logits [B] of rows of token ids, on the device."""
        width = max(map(len, rows))
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        places = torch.tensor([[row.index(prefix) for prefix in self._encoder.prefix_ids] for row in rows])
        with torch.inference_mode():
            logits: Tensor = self._network(*(tensor.to(self._device) for tensor in (ids, mask, places)))
        return logits


def _check_prefixes(model: ResolvedModel, config: Any, ids: Sequence[int]) -> None:
    """Refuse a tokenizer whose prefixes have other ids than the configuration says, or no embedding."""
    for name, found in zip(_PREFIX_FIELDS, ids, strict=True):
        stated = getattr(config, name, found)
        if stated != found:
            fault = f"its {CONFIG_FILE} has {name} {stated}, but its tokenizer has {found}"
        elif found >= config.vocab_size:
            fault = f"its tokenizer has {name} {found}, but its embedding has {config.vocab_size} rows"
        else:
            continue
        raise model.directory.invalid(fault, "Use the tokenizer of this model.", code="TokenizerInvalid")
