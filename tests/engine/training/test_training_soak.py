"""The soak test for GPUs, tried on a CPU: FlexAttention as it is traced, with faults that the soak test must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_training_flex import flex, make_compiled  # noqa: F401 (fixtures)
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.gpu import soak as soak_module
from benchmarks.gpu.soak import Observed, soak
from benchmarks.training.workload import ModelSize, llama
from wrpo_engine.training.batch.collate import Batch, collate
from wrpo_engine.training.batch.layout import AttentionPlan, Layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.models import attention
from wrpo_engine.training.models.attention_flex import family_attention_flex
from wrpo_engine.training.models.attention_segments import ScoreRule
from wrpo_engine.training.models.model import LogpModel

STEPS = 14
exact_by_segment = attention.attend_by_segment
"""The function itself, whose calls the soak test does not count."""


def batch_of(step: int) -> Batch:
    """Return another mask for every step, of two blocks of 128 and more."""
    prompt = tuple(3 + token % 150 for token in range(130 + 7 * step))
    row = TokenRow("row", prompt, ((5,) * (4 + step), (6,) * 9, (7, 8)))
    return collate([row], Layout.SHARED_PREFIX)


def model() -> LogpModel:
    return LogpModel(llama(ModelSize(1, 32, 48, 2, 1, 200)).double().train(), Layout.SHARED_PREFIX)


def attend_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Tensor], Tensor]) -> None:
    """Use FlexAttention on the CPU; `change(call, output)` changes its results."""
    calls: list[int] = []

    def on_a_gpu(_module: Any, *heads: Tensor, plan: AttentionPlan, scaling: float, **_settings: Any) -> Any:
        calls.append(1)
        return change(len(calls), family_attention_flex(heads[0], heads[1], heads[2], ScoreRule(plan, scaling))), None

    monkeypatch.setattr(attention, "family_attention", on_a_gpu)


def run(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Tensor], Tensor] = lambda _call, out: out) -> Observed:
    attend_as_on_a_gpu(monkeypatch, change)
    return soak(model(), batch_of, STEPS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("flex")
def test_masks_that_change_compile_nothing_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    before = counters["stats"]["unique_graphs"]
    observed = run(monkeypatch)
    assert observed.problem is None
    assert (observed.steps, observed.compilations_after_warm_up, observed.fallbacks) == (STEPS, 0, 0)
    assert max(observed.loss_difference, observed.gradient_difference) < 1e-9
    assert counters["stats"]["unique_graphs"] > before, "FlexAttention was not compiled at all"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("factor", "problem"),
    [
        (float("nan"), "step 3: the loss is nan, by segment "),
        (1.5, "step 3: the gradient of causal_lm.model.layers.0.self_attn."),
    ],
)
def test_a_wrong_result_ends_the_soak_test_at_its_step(
    factor: float, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "family_attention_flex", exact_by_segment)
    observed = run(monkeypatch, lambda call, output: output * factor if call == 3 else output)
    assert observed.problem is not None
    assert observed.problem.startswith(problem)
    assert observed.steps == 3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_fallback_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fallen_back(*arguments: Any) -> Tensor:
        return attention.attend_by_segment(*arguments)

    monkeypatch.setitem(globals(), "family_attention_flex", fallen_back)
    observed = run(monkeypatch)
    assert observed.fallbacks == STEPS
    assert observed.problem == f"{STEPS} layers were computed by segment, but none is allowed"


def test_a_compilation_after_the_warm_up_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([4, 6])
    monkeypatch.setattr(soak_module, "compilations", lambda: next(numbers))
    monkeypatch.setitem(globals(), "family_attention_flex", exact_by_segment)
    observed = run(monkeypatch)
    assert observed.compilations_after_warm_up == 2
    assert observed.problem == "2 compilations after step 10, but none is allowed"
