"""The network of a reward model: token ids of a batch in, scores out. Decoders are read at selected tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from wrpo_engine.loading.exact_attention import use_exact_attention
from wrpo_engine.scoring.batching import token_batches
from wrpo_engine.scoring.encoding import Encoded
from wrpo_engine.scoring.packed import group_batches, group_rows, pack
from wrpo_engine.text.conversations import Prompt
from wrpo_engine.training.batch.layout import AttentionPlan
from wrpo_engine.training.models import attention

CPU_BATCH_TOKENS = 1024
"""A CPU computes no faster with more tokens, which no longer fit its caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One pair as a network reads it."""

    prompt: Prompt
    encoded: Encoded
    last: int
    """Position whose hidden state gives the reward."""
    prompt_end: int | None = None
    """Position whose hidden state drives the gate, where there is one."""

    @property
    def ids(self) -> list[int]:
        """Token ids of the pair."""
        return self.encoded.ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One forward pass. B = rows."""

    rows: tuple[int, ...]
    """Index of each row among all that are scored."""
    inputs: dict[str, Tensor]
    """What the model takes."""
    read: dict[str, Tensor]
    """Flat positions [B] of the tokens whose hidden states are read: `last`, and `prompt_end` for a gate."""
    padding: tuple[int, ...]
    """Padding tokens of each row."""
    plan: AttentionPlan | None = None
    """Packed rows: the attention mask of the segments."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch with every tensor changed, for example moved to a device."""
        return replace(
            self,
            inputs={name: change(tensor) for name, tensor in self.inputs.items()},
            read={name: change(tensor) for name, tensor in self.read.items()},
        )


class Network(Protocol):
    """A loaded model."""

    config: Any
    """As Transformers has it."""

    def batches(self, rows: Sequence[Row], budget: int) -> Iterator[Batch]:
        """Yield batches of at most `budget` tokens, on the CPU, that hold every row once."""
        ...

    def forward(self, batch: Batch) -> Tensor:
        """Return [B, 1 + objectives] in float32, the score first."""
        ...


class LinearHead(nn.Module):
    """The one-label head of a decoder classifier, computed in float32."""

    def __init__(self, weight_1H: Tensor) -> None:  # noqa: N803 (shape suffixes)
        super().__init__()
        self.register_buffer("weight_1H", weight_1H.detach().float())

    def forward(self, last_BH: Tensor, prompt_end_BH: Tensor | None = None) -> Tensor:  # noqa: N803
        """Return scores [B, 1] in float32 from the last tokens' hidden states [B, H]; `prompt_end_BH` is not used."""
        del prompt_end_BH
        return functional.linear(last_BH.float(), self.get_buffer("weight_1H"))


class PaddedDecoder:
    """A causal backbone on padded rows.

    Padding is on the right, where no causal attention of a real token sees it, so no mask is needed and the
    fastest kernels apply.
    """

    def __init__(self, backbone: Any, head: nn.Module) -> None:
        use_exact_attention(backbone)
        self.config = backbone.config
        self._backbone = backbone
        self._head = head

    def batches(self, rows: Sequence[Row], budget: int) -> Iterator[Batch]:
        """Yield padded batches of at most `budget` tokens, longest rows first."""
        for indices in token_batches([len(row.ids) for row in rows], budget):
            yield self._collate(indices, [rows[index] for index in indices])

    def forward(self, batch: Batch) -> Tensor:
        """Return [B, 1 + objectives] in float32, the score first."""
        hidden = self._backbone(**batch.inputs, **self._extra(batch), use_cache=False).last_hidden_state
        flat = hidden.flatten(0, 1)
        output: Tensor = self._head(*(flat[positions] for positions in batch.read.values()))
        return output

    def _extra(self, batch: Batch) -> dict[str, Any]:
        del batch
        return {}

    def _collate(self, indices: Sequence[int], rows: Sequence[Row]) -> Batch:
        width = max(len(row.ids) for row in rows)
        padding = tuple(width - len(row.ids) for row in rows)
        return Batch(
            rows=tuple(indices),
            inputs={"input_ids": torch.tensor([row.ids + [0] * pad for row, pad in zip(rows, padding, strict=True)])},
            read=_read([(place * width + row.last, _offset(place * width, row)) for place, row in enumerate(rows)]),
            padding=padding,
        )


class PackedDecoder(PaddedDecoder):
    """A causal backbone on packed rows: no padding, and a prompt is computed once for its responses."""

    def __init__(self, backbone: Any, head: nn.Module) -> None:
        super().__init__(backbone, head)
        attention.register()
        backbone.set_attn_implementation(attention.IMPLEMENTATION)

    def batches(self, rows: Sequence[Row], budget: int) -> Iterator[Batch]:
        """Yield packed batches of at most `budget` tokens; rows of one prompt share its tokens."""
        ids = [row.ids for row in rows]
        # Sharing a prompt saves more than small batches do, so only a group above the whole budget is split.
        found = group_rows(ids, [row.prompt for row in rows], budget)
        for groups in group_batches(found, min(budget, CPU_BATCH_TOKENS)):
            packing = pack(ids, groups)
            indices = tuple(index for group in groups for index in group.rows)
            positions = [
                (
                    packing.place(place, rows[index].last),
                    None if (end := rows[index].prompt_end) is None else packing.place(place, end),
                )
                for place, index in enumerate(indices)
            ]
            yield Batch(
                rows=indices,
                inputs={
                    "input_ids": torch.tensor([packing.ids]),
                    "position_ids": torch.tensor([packing.positions]),
                },
                read=_read(positions),
                padding=(0,) * len(indices),
                plan=AttentionPlan(packing.families, torch.tensor(packing.positions)),
            )

    def _extra(self, batch: Batch) -> dict[str, Any]:
        return {"plan": batch.plan}


class Classifier:
    """Any other one-label classifier, run as a whole: encoders, and decoders with a custom head."""

    def __init__(self, model: Any) -> None:
        use_exact_attention(model)
        self.config = model.config
        self._model = model
        self._pads_by_config = bool(getattr(model.config, "pad_token_id", None) is not None)

    def batches(self, rows: Sequence[Row], budget: int) -> Iterator[Batch]:
        """Yield padded batches of at most `budget` tokens, longest rows first."""
        for indices in token_batches([len(row.ids) for row in rows], budget):
            yield self._collate(indices, [rows[index].encoded for index in indices])

    def forward(self, batch: Batch) -> Tensor:
        """Return the scores [B, 1] in float32."""
        inputs = dict(batch.inputs)
        pad = inputs.pop("pad_id")
        if not self._pads_by_config:
            # Decoders look for the last token that is not this one.
            self._model.config.pad_token_id = int(pad)
        logits: Tensor = self._model(**inputs).logits
        return logits.float().reshape(-1, 1)

    def _collate(self, indices: Sequence[int], rows: Sequence[Encoded]) -> Batch:
        width = max(len(row.ids) for row in rows)
        padding = tuple(width - len(row.ids) for row in rows)
        pad = self._pad_id(rows)
        inputs = {
            "pad_id": torch.tensor(pad),
            "input_ids": torch.tensor([row.ids + [pad] * more for row, more in zip(rows, padding, strict=True)]),
        }
        if any(padding):
            mask = [[1] * len(row.ids) + [0] * more for row, more in zip(rows, padding, strict=True)]
            inputs["attention_mask"] = torch.tensor(mask)
        if all(row.types is not None for row in rows):
            types = [(row.types or []) + [0] * more for row, more in zip(rows, padding, strict=True)]
            inputs["token_type_ids"] = torch.tensor(types)
        return Batch(rows=tuple(indices), inputs=inputs, read={}, padding=padding)

    def _pad_id(self, rows: Sequence[Encoded]) -> int:
        """Return the config's padding token, or where it has none one that does not occur in the batch."""
        if self._pads_by_config:
            return int(self._model.config.pad_token_id)
        used = {token for row in rows for token in row.ids}
        return next(token for token in range(len(used) + 1) if token not in used)


def _offset(start: int, row: Row) -> int | None:
    return None if row.prompt_end is None else start + row.prompt_end


def _read(positions: Sequence[tuple[int, int | None]]) -> dict[str, Tensor]:
    read = {"last": torch.tensor([last for last, _ in positions])}
    ends = [end for _, end in positions if end is not None]
    if len(ends) == len(positions):
        read["prompt_end"] = torch.tensor(ends)
    return read
