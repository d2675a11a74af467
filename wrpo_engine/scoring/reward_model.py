"""A reward model in this process: pairs are batched by a budget of tokens, the next batch prepared in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from wrpo_engine.errors import DataError
from wrpo_engine.hub.client import section_of
from wrpo_engine.hub.models import ResolvedModel, check_vocabulary, context_length, tokenizer_of
from wrpo_engine.loading.guard import loading
from wrpo_engine.loading.rotary import RotaryLimit, require_own_positions
from wrpo_engine.scoring.batching import prefetched
from wrpo_engine.scoring.encoding import Encoded, PairEncoder, Truncation, last_occurrence
from wrpo_engine.scoring.gated import is_gated, objective_names
from wrpo_engine.scoring.loading import ignored_last_token, load_network, read_config, unloadable
from wrpo_engine.scoring.network import Batch, Row
from wrpo_engine.scoring.rewards import MAIN_SECTION, OnProgress, Pair, Reward, check_finite, row_name
from wrpo_engine.text.conversations import Prompt

_PREFETCHED_BATCHES = 2


class RewardScorer:
    """A loaded reward model."""

    def __init__(
        self,
        model: ResolvedModel,
        *,
        max_length: int,
        batch_tokens: int,
        dtype: str = "auto",
        truncation: Truncation = "Right",
    ) -> None:
        if model.field == ResolvedModel.field:
            # No experiment names it.
            model = replace(model, field=f"{MAIN_SECTION}.model")
        section = section_of(model.field)
        self._template_field = f"{section}.chatTemplate"
        config = read_config(model)
        self.identity = model.identity
        with loading(partial(unloadable, model)):
            self.objectives = objective_names(config) if is_gated(config) else ()
            self._ignored = ignored_last_token(config)
        tokenizer = tokenizer_of(model, field=section, needs_template=False)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        check_vocabulary(model, tokenizer, tokenizer("?", verbose=False)["input_ids"])
        self._network = load_network(model, config, dtype, self._device)
        own_limit = getattr(tokenizer, "model_max_length", None)
        limits = (max_length, context_length(model), own_limit)
        self._encoder = PairEncoder(
            tokenizer,
            identity=model.identity,
            max_length=min(length for length in limits if length),
            truncation=truncation,
            section=section,
        )
        self._gate_pattern = self._encoder.keep_border() if self.objectives else None
        self._batch_tokens = batch_tokens

    def score(self, pairs: Sequence[Pair], names: Sequence[str] | None = None) -> list[float]:
        """Return one finite number a pair, in order. `names` say in errors which row a pair is."""
        return [reward.score for reward in self.rewards(pairs, names)]

    def rewards(
        self, pairs: Sequence[Pair], names: Sequence[str] | None = None, on_progress: OnProgress | None = None
    ) -> list[Reward]:
        """Return the reward of each pair, in order."""
        encoded = self._encoder.encode(pairs, names)
        rows, sources = self._unique_rows(pairs, encoded, names)
        values, padding = self._values(rows, on_progress, sources)
        rewards = []
        first_seen: set[int] = set()
        for index, row in enumerate(sources):
            score, *objectives = values[row]
            rewards.append(
                Reward(
                    score=score,
                    truncated=encoded[index].truncated,
                    change=encoded[index].change,
                    objectives=tuple(objectives),
                    num_tokens=len(encoded[index].ids),
                    num_padding=0 if row in first_seen else padding[row],
                )
            )
            first_seen.add(row)
        hint = "Check the model on this text; half precision may overflow (try float32). Or use another."
        check_finite(f"model {self.identity}", rewards, names, hint=hint)
        return rewards

    def _unique_rows(
        self, pairs: Sequence[Pair], encoded: Sequence[Encoded], names: Sequence[str] | None
    ) -> tuple[list[Row], list[int]]:
        """Return the different rows, and for each pair which of them it is: equal pairs get equal scores, once."""
        rows: list[Row] = []
        sources: list[int] = []
        known: dict[tuple[Prompt, tuple[int, ...]], int] = {}
        for index, ((prompt, _), row) in enumerate(zip(pairs, encoded, strict=True)):
            key = (prompt, tuple(row.ids))
            if key not in known:
                known[key] = len(rows)
                rows.append(self._row(prompt, row, names, index))
            sources.append(known[key])
        return rows, sources

    def _row(self, prompt: Prompt, encoded: Encoded, names: Sequence[str] | None, index: int) -> Row:
        last = len(encoded.ids) - 1
        while last > 0 and encoded.ids[last] == self._ignored:
            last -= 1
        if self._gate_pattern is None:
            return Row(prompt=prompt, encoded=encoded, last=last)
        prompt_end = last_occurrence(encoded.ids, self._gate_pattern)
        if prompt_end is None:
            raise DataError(
                f"{row_name(names, index)}: the tokens that end the prompt and open the response "
                f"({self._gate_pattern}) are not in what {self.identity} reads, so its gate has nothing to read",
                code="RewardPromptEndMissing",
                field="reward.truncation",
                hint=f"Raise reward.maxLength, or correct {self._template_field}.",
            )
        return Row(prompt=prompt, encoded=encoded, last=last, prompt_end=prompt_end)

    def _values(
        self, rows: Sequence[Row], on_progress: OnProgress | None, sources: Sequence[int]
    ) -> tuple[list[list[float]], list[int]]:
        """Return [score, objectives...] and the padding of each row."""
        values: list[list[float]] = [[] for _ in rows]
        padding = [0] * len(rows)
        pairs_of = [0] * len(rows)
        for row in sources:
            pairs_of[row] += 1
        for batch, output in self._outputs(rows):
            for index, pad, value in zip(batch.rows, batch.padding, output.tolist(), strict=True):
                values[index], padding[index] = value, pad
            if on_progress is not None:
                on_progress(sum(pairs_of[index] for index in batch.rows))
        return values, padding

    def _outputs(self, rows: Sequence[Row]) -> Iterator[tuple[Batch, Tensor]]:
        """Run every batch; a result is handed out when the next batch is already under way on the device."""
        on_gpu = self._device.type == "cuda"

        def prepared() -> Iterator[Batch]:
            for batch in self._batches(rows):
                yield batch.map(Tensor.pin_memory) if on_gpu else batch

        running: tuple[Batch, Tensor] | None = None
        ahead = prefetched(prepared, _PREFETCHED_BATCHES)
        try:
            for batch in ahead:
                with torch.inference_mode():
                    output = self._network.forward(batch.map(self._moved) if on_gpu else batch)
                if not on_gpu:
                    yield batch, output
                    continue
                if running is not None:
                    yield running
                running = batch, output
            if running is not None:
                yield running
        finally:
            ahead.close()

    def _batches(self, rows: Sequence[Row]) -> Iterator[Batch]:
        """Yield batches whose rows do not change each other's positions."""
        lengths = [len(row.ids) for row in rows]
        limit = RotaryLimit.of_config(self._network.config)
        if limit is None:
            yield from self._network.batches(rows, self._batch_tokens)
            return
        for side in limit.sides(lengths):
            require_own_positions(self._network.config, [lengths[index] for index in side], field="reward.maxLength")
            for batch in self._network.batches([rows[index] for index in side], self._batch_tokens):
                yield replace(batch, rows=tuple(side[index] for index in batch.rows))

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)
