"""Collation of token rows to the tensors of one forward pass, in one of three layouts.

The last token of a response predicts nothing and is not computed. The prompt's last token predicts the first token of
every response; in the shared-prefix layout one position therefore predicts several tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from wrpo_engine.training.batch.layout import AttentionPlan, Family, Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.batch.soft import SoftTargets, mixed_targets

PADDING_ID = 0
"""Any valid id: with right padding and causal attention no real token attends to it, and no loss reads it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of a micro-batch of S sequences with R tokens with loss, from B rows.

    Only the model's forward pass depends on the layout: `input_ids_LT` is [S, width] if padded, otherwise [1, T].
    """

    input_ids_LT: Tensor
    positions_R: Tensor
    """Index in the flattened [L * T] hidden states that predicts each token with loss."""
    targets_R: Tensor
    """Ids of the tokens with loss."""
    sequence_of_token_R: Tensor
    """Index of the sequence of each token with loss."""
    lengths_S: Tensor
    """Tokens with loss of every sequence: those of its response, and of its prompt if that has loss."""
    row_ids: tuple[str, ...]
    """Ids of the B rows; row b has the sequences b * S/B to (b + 1) * S/B."""
    plan: AttentionPlan | None = None
    """Attention between tokens; None if each row of `input_ids_LT` is one sequence."""
    soft: SoftTargets | None = None
    """Targets of the R tokens with loss in place of `targets_R` (SFT with fusion)."""

    @property
    def num_sequences(self) -> int:
        """S, the number of sequences."""
        return len(self.lengths_S)

    @property
    def num_computed_tokens(self) -> int:
        """Tokens that the forward pass computes, padding included."""
        return self.input_ids_LT.numel()

    def pinned(self) -> Batch:
        """Return the batch in pinned memory; `non_blocking` copies from pageable memory are synchronous."""
        plan = None if self.plan is None else self.plan.pinned()
        return self._with_tensors(lambda tensor: tensor.pin_memory(), plan)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on the device, copied asynchronously if it is pinned."""
        if device.type == "cpu":
            return self
        plan = None if self.plan is None else self.plan.to(device)
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True), plan)

    def _with_tensors(self, change: Callable[[Tensor], Tensor], plan: AttentionPlan | None) -> Batch:
        return replace(
            self,
            input_ids_LT=change(self.input_ids_LT),
            positions_R=change(self.positions_R),
            targets_R=change(self.targets_R),
            sequence_of_token_R=change(self.sequence_of_token_R),
            lengths_S=change(self.lengths_S),
            plan=plan,
            soft=None if self.soft is None else self.soft.with_tensors(change),
        )


@dataclass(slots=True)
class _Lists:
    """The growing contents of a packed micro-batch."""

    ids: list[int] = field(default_factory=list)
    positions_in_sequence: list[int] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)
    predictors: list[int] = field(default_factory=list)
    """For every token with loss, the position that predicts it."""

    def append(self, ids: Sequence[int], first_position: int) -> tuple[int, int]:
        start = len(self.ids)
        self.ids.extend(ids)
        self.positions_in_sequence.extend(range(first_position, first_position + len(ids)))
        return start, len(self.ids)


def collate(rows: Sequence[TokenRow], layout: Layout = Layout.PADDED) -> Batch:
    """Return the batch of the rows' sequences; raise ValueError for a row with an empty prompt or response."""
    empty = [row.row_id for row in rows if not row.prompt or not all(row.responses)]
    if empty:
        raise ValueError(f"rows need a prompt and responses of at least one token each; these do not: {empty}")
    targets: list[int] = []
    lengths: list[int] = []
    for row in rows:
        for response in row.responses:
            with_loss = (*row.prompt[1:], *response) if row.prompt_has_loss else response
            targets.extend(with_loss)
            lengths.append(len(with_loss))
    input_ids_LT, predictors, plan = _padded(rows) if layout is Layout.PADDED else _packed(rows, _PLACERS[layout])
    lengths_S = torch.tensor(lengths)
    targets_R = torch.tensor(targets)
    fused = [row.fused for row in rows if row.fused is not None]
    return Batch(
        input_ids_LT=input_ids_LT,
        positions_R=torch.tensor(predictors),
        targets_R=targets_R,
        sequence_of_token_R=torch.arange(len(lengths)).repeat_interleave(lengths_S),
        lengths_S=lengths_S.to(torch.float32),
        row_ids=tuple(row.row_id for row in rows),
        plan=plan,
        soft=mixed_targets(fused, targets_R) if fused else None,
    )


def _padded(rows: Sequence[TokenRow]) -> tuple[Tensor, list[int], None]:
    sequences = [(row, (*row.prompt, *response[:-1])) for row in rows for response in row.responses]
    width = max(len(ids) for _, ids in sequences)
    input_ids_LT = torch.full((len(sequences), width), PADDING_ID, dtype=torch.long)
    predictors: list[int] = []
    for index, (row, ids) in enumerate(sequences):
        input_ids_LT[index, : len(ids)] = torch.tensor(ids)
        predictors.extend(range(index * width + _first_predictor(row), index * width + len(ids)))
    return input_ids_LT, predictors, None


def _packed(
    rows: Sequence[TokenRow], place: Callable[[_Lists, TokenRow], None]
) -> tuple[Tensor, list[int], AttentionPlan]:
    lists = _Lists()
    for row in rows:
        place(lists, row)
    plan = AttentionPlan(tuple(lists.families), torch.tensor(lists.positions_in_sequence))
    return torch.tensor(lists.ids)[None], lists.predictors, plan


def _place_sequences(lists: _Lists, row: TokenRow) -> None:
    """Append each whole sequence, with a copy of the prompt for every response."""
    for response in row.responses:
        start, stop = lists.append((*row.prompt, *response[:-1]), 0)
        lists.families.append(Family((start, stop)))
        lists.predictors.extend(range(start + _first_predictor(row), stop))


def _place_once(lists: _Lists, row: TokenRow) -> None:
    """Append the prompt once, followed by its responses."""
    if len(row.responses) == 1:
        _place_sequences(lists, row)
        return
    prefix = lists.append(row.prompt, 0)
    branches = []
    for response in row.responses:
        start, stop = lists.append(response[:-1], len(row.prompt))
        lists.predictors.extend((prefix[1] - 1, *range(start, stop)))
        if start < stop:
            branches.append((start, stop))
    lists.families.append(Family(prefix, tuple(branches)))


_PLACERS = {Layout.SHARED_PREFIX: _place_once, Layout.PACKED: _place_sequences}


def _first_predictor(row: TokenRow) -> int:
    """Return the position in its sequence of the token that predicts the first token with loss."""
    return 0 if row.prompt_has_loss else len(row.prompt) - 1
