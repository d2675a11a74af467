"""The members of a joint decoder: models in memory that read a growing text with a key-value cache each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor

from wrpo_engine.contract.spreading import spread
from wrpo_engine.contract.types import Dtype
from wrpo_engine.errors import ConfigError, DataError, first_line
from wrpo_engine.fusing.tokens import Vocabulary, vocabulary_of
from wrpo_engine.hub.client import section_of
from wrpo_engine.hub.models import ResolvedModel, context_length, stop_token_ids, tokenizer_of, transformers_config
from wrpo_engine.loading.exact_attention import load_arguments, use_exact_attention
from wrpo_engine.loading.weights import SAMPLE, load_complete
from wrpo_engine.text.chat import end_of_turn_id


class Reader(Protocol):
    """Reads texts of one model."""

    def read(self, ids: Sequence[int]) -> Tensor:
        """Return the logits after each token that the call before did not read, [new tokens, vocabulary].

        At least one token is read. A text that begins otherwise than the one before is read from where they differ.
        """
        ...


class FreshReader:
    """Reads the whole text at each call, as the released decoders do."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._length = 0

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """See Reader; every text continues the one before."""
        start = min(self._length, len(ids) - 1)
        self._length = len(ids)
        logits: Tensor = self._model(input_ids=torch.tensor([list(ids)])).logits
        return logits[0, start:].float()


class CachedReader:
    """Keeps keys and values of what it has read."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._ids: list[int] = []
        self._cache: Any = None

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """See Reader."""
        pairs = zip(self._ids, ids, strict=False)
        start = min(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), len(ids) - 1)
        start = self._keep(start)
        device = self._model.device
        output = self._model(
            input_ids=torch.tensor([list(ids[start:])], device=device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
            position_ids=torch.arange(start, len(ids), device=device).unsqueeze(0),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._ids = list(ids)
        logits: Tensor = output.logits
        return logits[0].cpu().float()

    def _keep(self, length: int) -> int:
        """Shorten the cache to a number of tokens; return how many it holds: 0 if it cannot be shortened."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        if self._cache is not None and length < len(self._ids):
            # Sliding windows and recurrent states have forgotten what would be needed.
            if all(type(layer) is DynamicLayer for layer in self._cache.layers):
                self._cache.crop(length)
            else:
                self._cache = None
        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
            return 0
        return length


@dataclass(frozen=True)
class Member:
    """A model with its tokenizer."""

    resolved: ResolvedModel
    tokenizer: Any
    model: Any
    stops: frozenset[int]
    """Tokens that end an answer."""
    context: int | None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What its tokens mean, for the comparison with other models."""
        return vocabulary_of(self.tokenizer, end_of_turn_id(self.tokenizer))

    @cached_property
    def tokens(self) -> list[str]:
        """Its tokens by id, as the tokenizer names them; empty for ids that it does not know."""
        named: dict[str, int] = self.tokenizer.get_vocab()
        found = [""] * (max(named.values()) + 1)
        for token, index in named.items():
            found[index] = token
        return found

    @property
    def size(self) -> int:
        """Tokens that both its tokenizer and its logits have."""
        return min(len(self.tokens), int(self.model.config.get_text_config().vocab_size))

    def embeddings(self, kind: str) -> Any:
        """Return the input or output embedding of each token as an array, [tokens, dimensions]."""
        layer = self.model.get_input_embeddings() if kind == "Input" else self.model.get_output_embeddings()
        return layer.weight.detach().float().cpu().numpy()[: self.size]

    def require_numbers(self, logits: Tensor) -> Tensor:
        """Return logits; DataError if there is NaN among them."""
        if bool(torch.isnan(logits).any()):
            raise DataError(
                f"{self.resolved.identity} gave NaN where the next token's scores should be",
                code="LogitsNotFinite",
                field=self.resolved.field,
                hint="Use dtype float32 or bfloat16, or check the model's weights.",
            )
        return logits


def have_same_tokens(one: Member, other: Member) -> bool:
    """Return whether ids of two models mean the same."""
    return one.tokens == other.tokens


def same_meaning(main: Member, other: Member) -> dict[int, int]:
    """Return the special tokens of another model that have the role of one of the main model's, other -> main."""
    roles = ("unk_token_id", "pad_token_id", "bos_token_id", "eos_token_id")
    pairs = [(getattr(other.tokenizer, role), getattr(main.tokenizer, role)) for role in roles]
    pairs.append((end_of_turn_id(other.tokenizer), end_of_turn_id(main.tokenizer)))
    return {one: two for one, two in pairs if one is not None and two is not None}


def load_members(models: Sequence[ResolvedModel], dtype: Dtype) -> list[Member]:
    """Load models by Transformers, each whole on one of the process's accelerators, or all on the CPU."""
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [sum(file.stat().st_size for file in model.path.glob("*.safetensors")) for model in models]
    places = spread(sizes, number) if number else []
    devices = [torch.device("cuda", place) for place in places] or [torch.device("cpu")] * len(models)
    return [load_member(model, dtype, device) for model, device in zip(models, devices, strict=True)]


def load_member(resolved: ResolvedModel, dtype: Dtype, device: torch.device) -> Member:
    """Load a model by Transformers; ConfigError if its files are not a whole causal language model."""
    from transformers import AutoModelForCausalLM

    def refuse(error: BaseException) -> ConfigError:
        rule = f"it cannot be loaded as a causal language model: {first_line(error)}"
        return resolved.directory.invalid(rule, "Use a model that AutoModelForCausalLM loads.")

    tokenizer = tokenizer_of(resolved, field=section_of(resolved.field))
    # bfloat16 is several times slower than float32 on CPUs without support for it.
    chosen: Any = getattr(torch, dtype) if dtype != "auto" else torch.float32 if device.type == "cpu" else "auto"
    model = load_complete(
        resolved.directory,
        AutoModelForCausalLM,
        SAMPLE,
        refuse,
        dtype=chosen,
        trust_remote_code=resolved.trust_remote_code,
        **load_arguments(transformers_config(resolved)),
    )
    model.to(device).eval()
    use_exact_attention(model)
    stops = frozenset(stop_token_ids(tokenizer, resolved, end_of_turn_id(tokenizer)))
    return Member(resolved, tokenizer, model, stops, context_length(resolved))
