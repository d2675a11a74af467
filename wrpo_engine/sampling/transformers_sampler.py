"""Sampling with transformers: the backend for machines without vLLM. Prompts are batched by length, padded on the left.

The samples of a prompt share what is computed for it, and finished rows leave their batch. A sample's random numbers
come from its own seed through a counter-based generator, so they do not depend on the batch. Batches never cross a
group of requests: the same group gives the same bits regardless of what else is sampled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from wrpo_engine.errors import ConfigError, DataError, first_line
from wrpo_engine.hub.models import ResolvedModel, transformers_config
from wrpo_engine.loading.exact_attention import load_arguments, use_exact_attention
from wrpo_engine.loading.rotary import require_own_positions
from wrpo_engine.loading.weights import SAMPLE, is_quantised, load_complete
from wrpo_engine.sampling.grouped_attention import use_grouped_attention
from wrpo_engine.sampling.options import check_backend_options
from wrpo_engine.sampling.rows import Row, park, rows_of, shared_prefixes, take_batch
from wrpo_engine.sampling.sampler import (
    FinishReason,
    PromptLogps,
    Sample,
    Sampled,
    SampleRequest,
    SamplerSettings,
    repeat_greedy,
    waiting_of,
)
from wrpo_engine.sampling.token_choice import limited, penalised

_LOGITS_PER_CHUNK = 2**25
"""Logits of a prompt that exist at a time: 128 MiB in float32."""
_MIN_CHUNK_TOKENS = 128
"""For the largest vocabularies; each chunk reads all weights."""


class TransformersSampler:
    """A causal language model that continues batches of prompts with a key-value cache."""

    def __init__(self, model: ResolvedModel, tokenizer: Any, settings: SamplerSettings) -> None:
        from transformers import AutoModelForCausalLM

        check_backend_options("Transformers", quantization=settings.quantization, engine_args=settings.engine_args)
        self._tokenizer = tokenizer
        self._settings = settings
        self._identity = model.identity
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = transformers_config(model)
        self._model = load_complete(
            model.directory,
            AutoModelForCausalLM,
            SAMPLE,
            partial(_unloadable, model, is_quantised(config.to_dict())),
            dtype=self._dtype(),
            trust_remote_code=model.trust_remote_code,
            **load_arguments(config),
        )
        self._model.to(self._device).eval()
        use_exact_attention(self._model)
        use_grouped_attention(self._model)
        self._stop_ids = frozenset(settings.stop_token_ids)

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        """Yield each request's responses; ConfigError if lengths would change each other's rotary positions."""
        queue = waiting_of(requests)
        extremes: list[int] = self._require_own_positions(queue)
        rows_by_key: dict[str, list[Row]] = {}
        waiting: deque[Row] = deque()
        group: int | None = None
        while queue or rows_by_key:
            if not rows_by_key:
                group = queue[0].group
            fresh = list(takewhile(lambda request: request.group == group, queue))  # noqa: B023 (used at once)
            extremes = self._require_own_positions(fresh, extremes)
            for _ in fresh:
                queue.popleft()
            rows = rows_of(fresh, self._settings)
            for row in rows:
                rows_by_key.setdefault(row.request.key, []).append(row)
            waiting.extendleft(reversed([row for row in rows if row.finished is None]))
            if waiting:
                self._generate(take_batch(waiting, self._settings.batch_tokens), waiting)
            for key in [key for key, own in rows_by_key.items() if all(row.finished for row in own)]:
                yield self._sampled(rows_by_key.pop(key))

    def _require_own_positions(self, requests: Sequence[SampleRequest], others: Sequence[int] = ()) -> list[int]:
        """Check the lengths of requests together with others; return the shortest and the longest one."""
        lengths = list(others)
        for request in requests:
            shortest = len(request.prompt_token_ids)
            longest = shortest + self._settings.max_tokens_of(request)
            limit = self._settings.max_model_length
            lengths += [shortest, longest if limit is None else min(longest, limit)]
        require_own_positions(self._model.config, lengths, field="sampling.maxModelLength")
        return [min(lengths), max(lengths)] if lengths else []

    @torch.inference_mode()
    def prompt_logps(self, requests: Sequence[SampleRequest]) -> Iterator[PromptLogps]:
        """Yield each prompt's log probabilities. Prompts are read one by one, so none depends on another."""
        for request in requests:
            yield PromptLogps(key=request.key, logps=self._read(list(request.prompt_token_ids)))

    def _read(self, ids: list[int]) -> tuple[float, ...]:
        """Return the log probability of each token but the first; logits exist for one chunk of tokens at a time."""
        from transformers import DynamicCache

        logps: list[float] = []
        cache = DynamicCache(config=self._model.config)
        inputs = torch.tensor([ids], device=self._device)
        # The last token needs no logits: nothing follows it.
        for start, end in self._chunks(len(ids) - 1):
            if self._settings.poll is not None:
                self._settings.poll()
            output = self._model(
                input_ids=inputs[:, start:end],
                attention_mask=torch.ones_like(inputs[:, :end]),
                position_ids=torch.arange(start, end, device=self._device).unsqueeze(0),
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[0].float()
            self._require_numbers(logits)
            targets = inputs[0, start + 1 : end + 1].unsqueeze(-1)
            logps += (logits.gather(-1, targets).squeeze(-1) - logits.logsumexp(-1)).tolist()
        return tuple(logps)

    def _chunks(self, tokens: int) -> list[tuple[int, int]]:
        """Return the bounds of the chunks in which a prompt is read."""
        size = max(_MIN_CHUNK_TOKENS, _LOGITS_PER_CHUNK // self._model.config.get_text_config().vocab_size)
        if getattr(self._model, "_is_stateful", False):
            # A recurrent state continues by single tokens only.
            size = max(1, tokens)
        return [(start, min(start + size, tokens)) for start in range(0, tokens, size)]

    def close(self) -> None:
        """Release the model."""
        del self._model

    def _dtype(self) -> torch.dtype | str:
        if self._settings.dtype == "auto":
            # bfloat16 is several times slower than float32 on CPUs without support for it.
            return torch.float32 if self._device.type == "cpu" else "auto"
        dtype = getattr(torch, self._settings.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def _sampled(self, rows: Sequence[Row]) -> Sampled:
        request = rows[0].request
        samples = tuple(
            Sample(
                text=self._decode(self._answer(row)) if row.text is None else row.text,
                num_tokens=len(row.tokens),
                finish_reason=row.finished or FinishReason.LENGTH,
                seed=row.seed,
            )
            for row in rows
        )
        if self._settings.is_greedy(request):
            samples = repeat_greedy(samples[0], request.num_samples)
        return Sampled(key=request.key, samples=samples)

    def _answer(self, row: Row) -> Sequence[int]:
        """Return a row's tokens without the one that ended it, which is not text even if not marked as special."""
        ended = row.finished is FinishReason.STOP and row.tokens and row.tokens[-1] in self._stop_ids
        return row.tokens[:-1] if ended else row.tokens

    def _decode(self, tokens: Sequence[int]) -> str:
        # Some tokenizers ask for a clean-up that changes the text: " ." becomes ".".
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Row], waiting: deque[Row]) -> None:
        """Run every row of the batch until it ends, or put it back if memory does not suffice for all."""
        from transformers import DynamicCache

        heads, places = shared_prefixes(batch)
        ids, mask = self._left_padded([row.ids for row in heads])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        logits = self._forward(ids, mask, positions, cache)
        if len(heads) < len(batch):
            index = torch.tensor(places, device=self._device)
            cache.batch_select_indices(index)
            mask, positions, logits = mask[index], positions[index], logits[index]
        running = list(batch)
        while True:
            tokens = self._choose(logits, running)
            for row, token in zip(running, tokens, strict=True):
                if row.finished is None:
                    row.add(token, self._stop_ids, self._settings.stop, self._decode)
            left = [place for place, row in enumerate(running) if row.finished is None]
            staying = park([running[place] for place in left], waiting, mask.shape[-1] + 1, self._settings.batch_tokens)
            if not staying:
                return
            ids = torch.tensor(tokens, device=self._device).unsqueeze(-1)
            # Finished rows cost as much as running ones; taking them out costs a copy of the cache.
            if len(staying) < len(left) or 8 * len(left) <= 7 * len(running):
                index = torch.tensor(left[: len(staying)], device=self._device)
                cache.batch_select_indices(index)
                ids, mask, positions, running = ids[index], mask[index], positions[index], staying
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=-1)
            positions = positions[:, -1:] + 1
            logits = self._forward(ids, mask, positions, cache)

    def _left_padded(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask, both [rows, width]. The padding's value never matters: its position is masked."""
        width = max(len(sequence) for sequence in sequences)
        ids = [[0] * (width - len(sequence)) + list(sequence) for sequence in sequences]
        mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Return the logits after each row's last token, [rows, vocabulary]."""
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
        logits = output.logits[:, -1, :]
        assert isinstance(logits, torch.Tensor)
        return logits

    def _choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        """Return the next token of each row, logits [rows, vocabulary]; finished rows get an unused token."""
        self._require_numbers(logits)
        logits = penalised(logits, rows, self._settings.choice)
        drawn = [place for place, row in enumerate(rows) if row.temperature > 0]
        if len(drawn) == len(rows):
            return self._draw(logits, rows)
        tokens = [int(token) for token in logits.argmax(dim=-1).tolist()]
        if drawn:
            for place, token in zip(drawn, self._draw(logits[drawn], [rows[place] for place in drawn]), strict=True):
                tokens[place] = token
        return tokens

    def _draw(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        """Draw the next token of each row from logits [rows, vocabulary] at its temperature."""
        temperatures = torch.tensor([[row.temperature] for row in rows], dtype=torch.float64, device=logits.device)
        # In float64, so that the choice does not depend on the sum's rounding.
        scaled = logits.double() / temperatures
        probabilities = torch.softmax(limited(scaled, self._settings.choice), dim=-1)
        draws = [0.0 if row.finished is not None else row.draws.random() for row in rows]
        return nucleus_choice(probabilities, torch.tensor(draws, dtype=torch.float64), self._settings.top_p)

    def _require_numbers(self, logits: torch.Tensor) -> None:
        """Raise DataError if there is NaN among logits."""
        if bool(torch.isnan(logits).any()):
            raise DataError(
                f"{self._identity} gave NaN where the next token's scores should be",
                code="LogitsNotFinite",
                field="sampling.dtype",
                hint="Set sampling.dtype to float32 or bfloat16, or check the model's weights.",
            )


def _unloadable(model: ResolvedModel, quantised: bool, error: BaseException) -> ConfigError:
    hint = "Use a model that AutoModelForCausalLM loads."
    if quantised:
        hint = "Set sampling.backend: vLLM, which loads quantised weights, or use the model before quantisation."
    kind = "quantised " if quantised else ""
    return model.directory.invalid(f"it cannot be loaded as a {kind}causal language model: {first_line(error)}", hint)


def nucleus_choice(
    probabilities: torch.Tensor, draws: torch.Tensor, top_p: float, *, candidates: int = 1024
) -> list[int]:
    """Choose one token of each row from the smallest set of likeliest tokens that holds `top_p` of the probability.

    probabilities [batch, vocabulary] in float64; draws [batch], uniform in [0, 1). Equally likely tokens are in the
    order of their ids. Only the likeliest `candidates` tokens are sorted where the nucleus is within them, as
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
