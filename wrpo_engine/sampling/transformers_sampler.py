"""Sampling with transformers: the backend for machines without vLLM. Prompts are batched by length, padded on the left.

A sample's random numbers come from its own seed through a counter-based generator, so they do not depend on the
batch. Batches never cross a group of requests: the same group gives the same bits whatever else is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch

from wrpo_engine.errors import ConfigError
from wrpo_engine.models import ResolvedModel
from wrpo_engine.sampling.sampler import FinishReason, Sample, Sampled, SampleRequest, SamplerSettings


@dataclass
class _Row:
    """One answer being made."""

    request: SampleRequest
    index: int
    draws: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False
    is_finished: bool = False

    @property
    def seed(self) -> int:
        return self.request.seed + self.index


class TransformersSampler:
    """A causal language model that answers batches of prompts with a key-value cache."""

    def __init__(self, model: ResolvedModel, tokenizer: Any, settings: SamplerSettings) -> None:
        from transformers import AutoModelForCausalLM

        self._tokenizer = tokenizer
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                str(model.path),
                dtype=self._dtype(),
                trust_remote_code=model.trust_remote_code,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                "model",
                model.identity,
                f"it cannot be loaded as a causal language model: {str(error).splitlines()[0][:300]}",
                "Use a model that AutoModelForCausalLM loads.",
                code="ModelInvalid",
            ) from error
        self._model.to(self._device).eval()
        self._stops = frozenset(settings.stop_token_ids)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        for _, group in groupby(requests, key=lambda request: request.group):
            yield from self._sample_group(list(group))

    def close(self) -> None:
        del self._model

    def _dtype(self) -> torch.dtype | str:
        if self._settings.dtype == "auto":
            # bfloat16 is several times slower than float32 on CPUs without support for it.
            return torch.float32 if self._device.type == "cpu" else "auto"
        dtype = getattr(torch, self._settings.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def _sample_group(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        finished: dict[str, list[_Row]] = {request.key: [] for request in requests}
        rows = [
            _Row(request, index, np.random.Generator(np.random.Philox(key=request.seed + index)))
            for request in requests
            for index in range(request.num_samples)
        ]
        for batch in _batches(rows, self._settings):
            self._generate(batch)
            for row in batch:
                finished[row.request.key].append(row)
        for request in requests:
            ordered = sorted(finished[request.key], key=lambda row: row.index)
            yield Sampled(key=request.key, samples=tuple(self._sample_of(row) for row in ordered))

    def _sample_of(self, row: _Row) -> Sample:
        return Sample(
            text=self._tokenizer.decode(row.tokens, skip_special_tokens=True),
            num_tokens=len(row.tokens),
            finish_reason=FinishReason.STOP if row.stopped else FinishReason.LENGTH,
            seed=row.seed,
        )

    @torch.inference_mode()
    def _generate(self, batch: Sequence[_Row]) -> None:
        """Let every row of the batch run until it stops or is full."""
        from transformers import DynamicCache

        prompts = [row.request.prompt_token_ids for row in batch]
        width = max(len(prompt) for prompt in prompts)
        # The padding token's value never matters: its position is masked.
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=self._device)
        mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self._device
        )
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        running = [row for row in batch if self._limit(row) > 0]
        if len(running) < len(batch):
            keep = torch.tensor([index for index, row in enumerate(batch) if self._limit(row) > 0], dtype=torch.long)
            ids, mask, positions = ids[keep], mask[keep], positions[keep]
        while running:
            if self._settings.poll is not None:
                self._settings.poll()
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            tokens = self._choose(output.logits[:, -1, :], running)
            for row, token in zip(running, tokens, strict=True):
                if not row.is_finished:
                    row.tokens.append(token)
                    row.stopped = token in self._stops
                    row.is_finished = row.stopped or len(row.tokens) >= self._limit(row)
            ids = torch.tensor(tokens, device=self._device).unsqueeze(-1)
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=-1)
            positions = positions[:, -1:] + 1
            left = [index for index, row in enumerate(running) if not row.is_finished]
            # Finished rows cost as much as running ones; taking them out costs a copy of the cache.
            if len(left) <= len(running) // 2:
                keep = torch.tensor(left, device=self._device, dtype=torch.long)
                if left:
                    cache.batch_select_indices(keep)
                ids, mask, positions = ids[keep], mask[keep], positions[keep]
                running = [running[index] for index in left]

    def _limit(self, row: _Row) -> int:
        limit = self._settings.max_tokens
        if self._settings.max_model_length is not None:
            limit = min(limit, self._settings.max_model_length - len(row.request.prompt_token_ids))
        return limit

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row]) -> list[int]:
        """Return the next token of each row, logits [rows, vocabulary]; finished rows get a token nobody reads."""
        if self._settings.temperature == 0:
            return [int(token) for token in logits.argmax(dim=-1).tolist()]
        # In float64, so that the choice does not hang on the sum's rounding.
        probabilities = torch.softmax(logits.double() / self._settings.temperature, dim=-1)
        draws = [0.0 if row.is_finished else row.draws.random() for row in rows]
        return nucleus_choice(probabilities, torch.tensor(draws, dtype=torch.float64), self._settings.top_p)


def nucleus_choice(
    probabilities: torch.Tensor, draws: torch.Tensor, top_p: float, *, candidates: int = 1024
) -> list[int]:
    """Choose one token of each row from the smallest set of likeliest tokens that holds `top_p` of the probability.

    probabilities [batch, vocabulary] in float64; draws [batch], uniform in [0, 1). Equally likely tokens are in the
    order of their ids. Only the likeliest `candidates` tokens are sorted where the nucleus lies within them, as
    sorting a whole vocabulary at every step costs as much as a small model.
    """
    size = min(candidates, probabilities.shape[-1])
    tokens = probabilities.topk(size, dim=-1).indices.sort(dim=-1).values
    ordered, order = probabilities.gather(-1, tokens).sort(dim=-1, descending=True, stable=True)
    if size < probabilities.shape[-1] and bool((ordered.sum(dim=-1) <= top_p).any()):
        ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    else:
        tokens = tokens.gather(-1, order)
    cumulative = ordered.cumsum(dim=-1)
    # A token is in the nucleus if the likelier ones do not reach top_p by themselves; the first always is.
    inside = (cumulative - ordered) < top_p
    inside[:, 0] = True
    last = inside.sum(dim=-1, keepdim=True) - 1
    targets = draws.to(probabilities.device).unsqueeze(-1) * cumulative.gather(-1, last)
    places = torch.searchsorted(cumulative, targets, right=True).clamp(max=last)
    return [int(token) for token in tokens.gather(-1, places).squeeze(-1).tolist()]


def _batches(rows: Sequence[_Row], settings: SamplerSettings) -> Iterator[list[_Row]]:
    """Batch rows of like length; the prompt and the whole answer of a row count against the budget."""
    order = sorted(rows, key=lambda row: (-len(row.request.prompt_token_ids), row.request.key, row.index))
    start = 0
    while start < len(order):
        tokens = len(order[start].request.prompt_token_ids) + settings.max_tokens
        size = max(1, settings.batch_tokens // tokens)
        yield order[start : start + size]
        start += size
