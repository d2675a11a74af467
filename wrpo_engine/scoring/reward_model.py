"""A sequence-classification reward model: (prompt, response) in, one number out; batched by a budget of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_engine.chat import messages_of, text_token_ids
from wrpo_engine.config import RewardModel
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.models import ResolvedModel, context_length, resolve_model, tokenizer_of
from wrpo_engine.stage import StageContext

Pair = tuple[str, str]


@dataclass(frozen=True)
class Reward:
    """The score of one pair; truncated if the model read only its beginning."""

    score: float
    truncated: bool


@dataclass(frozen=True)
class _Encoded:
    """Token ids of a pair, and token types where the model has them."""

    ids: list[int]
    types: list[int] | None
    truncated: bool


class RewardScorer:
    """A loaded reward model."""

    def __init__(self, model: ResolvedModel, *, max_length: int, batch_tokens: int, dtype: str = "auto") -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        self.details = model.details()
        self._name = model.identity
        self._tokenizer = tokenizer_of(model, field="reward.model", needs_template=False)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._model, loaded = AutoModelForSequenceClassification.from_pretrained(
                str(model.path),
                dtype=_torch_dtype(dtype, self._device),
                trust_remote_code=model.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                "reward.model",
                model.identity,
                f"it cannot be loaded as a sequence classifier: {str(error).splitlines()[0][:300]}",
                "Use a reward model that AutoModelForSequenceClassification loads.",
                code="RewardModelInvalid",
            ) from error
        labels = int(self._model.config.num_labels)
        if labels != 1:
            raise ConfigError(
                "reward.model",
                model.identity,
                f"it has {labels} labels, but a reward model must have exactly one",
                "Use a classifier trained with num_labels=1.",
                code="RewardModelInvalid",
            )
        if missing := sorted(loaded["missing_keys"]):
            raise ConfigError(
                "reward.model",
                model.identity,
                f"its files hold no weights for {', '.join(missing[:3])}, so its scores would be random",
                "Use a trained sequence classifier; a base or chat model is no reward model.",
                code="RewardModelInvalid",
            )
        self._model.to(self._device).eval()
        limit = context_length(model)
        own_limit = getattr(self._tokenizer, "model_max_length", None)
        self._max_length = min(length for length in (max_length, limit, own_limit) if length)
        self._batch_tokens = batch_tokens

    def score(self, pairs: Sequence[Pair], names: Sequence[str] | None = None) -> list[float]:
        """Return one finite number a pair, in order. `names` say in errors which row a pair is."""
        return [reward.score for reward in self.rewards(pairs, names)]

    def rewards(
        self,
        pairs: Sequence[Pair],
        names: Sequence[str] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Reward]:
        """Return the score of each pair, in order, and whether the pair was cut to the model's length.

        `on_batch` is told after each batch how many pairs it held; what it raises ends scoring.
        """
        encoded = [self._encode(prompt, response) for prompt, response in pairs]
        scores = [math.nan] * len(pairs)
        for batch in token_batches([len(row.ids) for row in encoded], self._batch_tokens):
            for index, value in zip(batch, self._forward([encoded[index] for index in batch]), strict=True):
                scores[index] = value
            if on_batch is not None:
                on_batch(len(batch))
        for index, value in enumerate(scores):
            if not math.isfinite(value):
                row = names[index] if names is not None else f"row {index}"
                raise DataError(
                    f"reward model {self._name} gives {value} for {row} ({len(encoded[index].ids)} tokens)",
                    code="RewardNotFinite",
                    field="reward.model",
                    hint="Check the model on this text; half precision may overflow (try float32). Or use another.",
                )
        return [Reward(score, row.truncated) for score, row in zip(scores, encoded, strict=True)]

    def _encode(self, prompt: str, response: str) -> _Encoded:
        """Return the pair as the model reads it, cut to its length."""
        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            messages = [*messages_of(prompt), {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = text_token_ids(tokenizer, text)
            return _Encoded(ids[: self._max_length], None, len(ids) > self._max_length)
        full = tokenizer(prompt, response, verbose=False)
        truncated = len(full["input_ids"]) > self._max_length
        if truncated:
            full = tokenizer(prompt, response, truncation="longest_first", max_length=self._max_length)
        types = full.get("token_type_ids")
        return _Encoded(list(full["input_ids"]), None if types is None else list(types), truncated)

    def _forward(self, batch: Sequence[_Encoded]) -> list[float]:
        import torch

        width = max(len(row.ids) for row in batch)
        pad = self._pad_id(batch)
        inputs = {
            "input_ids": torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in batch]),
            "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in batch]),
        }
        if all(row.types is not None for row in batch):
            rows = [(row.types or []) + [0] * (width - len(row.ids)) for row in batch]
            inputs["token_type_ids"] = torch.tensor(rows)
        with torch.inference_mode():
            logits = self._model(**{name: tensor.to(self._device) for name, tensor in inputs.items()}).logits
        return [float(value) for value in logits.float().reshape(-1).tolist()]

    def _pad_id(self, batch: Sequence[_Encoded]) -> int:
        """Return the padding token of a batch.

        Decoder classifiers find the last token as the last one that is not padding, so where the tokenizer has no
        padding token of its own, one that does not occur in the batch must be taken.
        """
        tokenizer, config = self._tokenizer, self._model.config
        own = tokenizer.pad_token_id
        if own is not None and own != tokenizer.eos_token_id:
            if config.pad_token_id is None:
                config.pad_token_id = own
            return int(own)
        used = {token for row in batch for token in row.ids}
        free = next(token for token in range(len(used) + 1) if token not in used)
        config.pad_token_id = free
        return free


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Group indices by length, longest first, so that padded rows of a batch hold at most `budget` tokens.

    A row longer than the budget is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        width = max(1, lengths[order[start]])
        size = max(1, budget // width)
        yield order[start : start + size]
        start += size


def load_reward_scorer(
    reward: RewardModel, ctx: StageContext, *, max_length: int, batch_tokens: int, dtype: str = "auto"
) -> RewardScorer:
    """Find and load the experiment's reward model."""
    model = resolve_model(reward, ctx, field="reward.model")
    return RewardScorer(model, max_length=max_length, batch_tokens=batch_tokens, dtype=dtype)


def _torch_dtype(dtype: str, device: Any) -> Any:
    """Return what `from_pretrained` takes; auto is the model's own format, but float32 on a CPU."""
    import torch

    if dtype == "auto":
        # bfloat16 is several times slower than float32 on CPUs without support for it.
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, dtype)
