"""Upper bound of the speed-up by operation counts: a peer's work over the least necessary work."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.training.workload import ModelSize, Row, llama, passes
from wrpo_engine.training.batch.flops import FORWARD_AND_BACKWARD, ModelCost, causal_pairs, needed_training_step
from wrpo_engine.training.batch.rows import TokenRow

REFERENCE_FORWARD = 1


def model_cost(size: ModelSize) -> ModelCost:
    import torch

    with torch.device("meta"):
        return ModelCost.of(llama(size))


def padded_operations(cost: ModelCost, rows: Sequence[Row], *, triples_per_pass: int) -> int:
    """Return the operations of a step of the plain implementation: padded copies, full head, a reference forward."""
    total = 0
    for batch in passes(rows, triples_per_pass):
        sequences, width = _padded(batch)
        total += cost.forward(
            tokens=sequences * width, pairs=sequences * causal_pairs(width), head_tokens=sequences * width
        )
    return (FORWARD_AND_BACKWARD + REFERENCE_FORWARD) * total


def trl_operations(cost: ModelCost, rows: Sequence[Row], *, triples_per_pass: int, precomputed: bool) -> int:
    """Return the operations of one step of TRL's DPOTrainer: padded copies, the head on response tokens only."""
    total = 0
    for batch in passes(rows, triples_per_pass):
        sequences, width = _padded(batch)
        total += cost.forward(
            tokens=sequences * width,
            pairs=sequences * causal_pairs(width),
            head_tokens=sum(len(response) for row in batch for response in row.responses),
        )
    return (FORWARD_AND_BACKWARD + (0 if precomputed else REFERENCE_FORWARD)) * total


def needed_operations(cost: ModelCost, rows: Sequence[Row]) -> int:
    """Return the least operations: each prompt once, no padding, no reference, the head on response tokens."""
    return needed_training_step(cost, [TokenRow("", row.prompt, row.responses) for row in rows])


def _padded(batch: Sequence[Row]) -> tuple[int, int]:
    """Return the number of sequences of a pass and the width of its longest."""
    width = max(len(row.prompt) + len(response) for row in batch for response in row.responses)
    return sum(len(row.responses) for row in batch), width
