"""The step-0 check: rounding passes at every length, another model's reference does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from wrpo_engine.errors import DataError
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.models.model import LogpModel, load_causal_lm
from wrpo_engine.training.reference.agreement import Disagreement, largest_disagreement, require_agreement


def differing(lengths: list[int], differences: list[float]) -> Disagreement:
    """Of one row whose responses have these lengths and differ by so much in sum."""
    batch = collate([TokenRow("a", (1,), tuple((2,) * length for length in lengths))])
    reference = -torch.tensor(lengths, dtype=torch.float32)
    return largest_disagreement(batch, reference + torch.tensor(differences), reference)


BOUNDS = {
    "rounding of a single token": (1, 0.3, True),
    "rounding of two tokens": (2, 0.4, True),
    "two tokens of another model": (2, 1.0, False),
    "rounding over 16 tokens": (16, 1.0, True),
    "16 tokens of another model": (16, 1.6, False),
    "rounding over 256 tokens": (256, 5.0, True),
    "256 tokens of another model": (256, 5.3, False),
    "rounding over 4096 tokens": (4096, 80.0, True),
    "4096 tokens of another model": (4096, 90.0, False),
}


@pytest.mark.parametrize(("length", "difference", "passes"), BOUNDS.values(), ids=BOUNDS.keys())
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_tolerated_in_bfloat16(length: int, difference: float, passes: bool, sign: int) -> None:
    found = differing([length], [sign * difference])
    assert found.per_token == pytest.approx(difference / length, rel=1e-3)
    if passes:
        require_agreement(found, "bfloat16")
        return
    with pytest.raises(DataError, match=f"on a response of {length} tokens of row a") as caught:
        require_agreement(found, "bfloat16")
    assert caught.value.code == "ReferenceMismatch"


def test_the_response_that_is_furthest_beyond_its_bound_is_named() -> None:
    found = differing([2, 400], [0.2, 20.0])
    assert (found.num_tokens, found.row_id) == (400, "a")


SHORT = [
    TokenRow(str(index), tuple(range(3, 4 + index % 7)), ((9, 2), (10 + index, 2), (11, 2))) for index in range(32)
]
"""Two tokens per response, as in multiple choice."""


def sequence_logps(directory: Path, rows: list[TokenRow], *, together: bool, noise: float = 0.0) -> torch.Tensor:
    torch.manual_seed(0)
    causal_lm = load_causal_lm(directory, precision="bfloat16", gradient_checkpointing=False, trust_remote_code=False)
    for parameter in causal_lm.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    model = LogpModel(causal_lm)
    batches = [rows] if together else [[row] for row in rows]
    with torch.no_grad():
        return torch.cat([model(batch=collate(batch)) for batch in batches])


def test_short_responses_in_other_micro_batches_agree_and_another_models_do_not(training_model_dir: Path) -> None:
    batch: Any = collate(SHORT)
    together = sequence_logps(training_model_dir, SHORT, together=True)
    alone = sequence_logps(training_model_dir, SHORT, together=False)
    require_agreement(largest_disagreement(batch, together, alone), "bfloat16")
    other = sequence_logps(training_model_dir, SHORT, together=False, noise=0.05)
    with pytest.raises(DataError, match="where they must agree"):
        require_agreement(largest_disagreement(batch, together, other), "bfloat16")
