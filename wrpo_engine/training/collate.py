"""Token rows to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wrpo_engine.training.rows import TokenRow

PADDING_ID = 0
"""Any valid id: with right padding and causal attention no real token sees it, and no loss reads it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """S sequences of width T; R response tokens in all. The layout is known to the model's forward pass only.

    `positions_R` addresses the flattened [S * T] hidden states, so that a packed layout needs no other model code:
    it names the position that predicts each response token.
    """

    input_ids_ST: Tensor
    positions_R: Tensor
    targets_R: Tensor
    sequence_of_token_R: Tensor
    lengths_S: Tensor
    """Response tokens of every sequence."""
    row_ids: tuple[str, ...]
    """Of the B rows; row b owns sequences b * S/B to (b + 1) * S/B."""

    @property
    def num_sequences(self) -> int:
        return len(self.lengths_S)

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        return Batch(
            self.input_ids_ST.to(device, non_blocking=True),
            self.positions_R.to(device, non_blocking=True),
            self.targets_R.to(device, non_blocking=True),
            self.sequence_of_token_R.to(device, non_blocking=True),
            self.lengths_S.to(device, non_blocking=True),
            self.row_ids,
        )


def collate(rows: Sequence[TokenRow]) -> Batch:
    """Right-pad the rows' sequences to one width."""
    sequences = [(row.prompt, response) for row in rows for response in row.responses]
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    input_ids_ST = torch.full((len(sequences), width), PADDING_ID, dtype=torch.long)
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for index, (prompt, response) in enumerate(sequences):
        input_ids_ST[index, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        first = index * width + len(prompt) - 1
        positions.extend(range(first, first + len(response)))
        targets.extend(response)
        owners.extend([index] * len(response))
    return Batch(
        input_ids_ST=input_ids_ST,
        positions_R=torch.tensor(positions),
        targets_R=torch.tensor(targets),
        sequence_of_token_R=torch.tensor(owners),
        lengths_S=torch.tensor([len(response) for _, response in sequences], dtype=torch.float32),
        row_ids=tuple(row.row_id for row in rows),
    )
