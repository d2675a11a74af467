"""What runs on GPUs at the shapes of real models: attention, log-probabilities in bf16, ZeRO with one process.

The same functions run on a CPU where its parts allow it: FlexAttention as it is traced, without generated kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from layout_support import ROWS, make_causal_lm
from test_training_flex import flex, make_compiled  # noqa: F401 (fixtures)
from test_training_layout import plan_of
from torch import Tensor

from benchmarks.common.process import run_worker
from benchmarks.training.workload import Case, Lengths, ModelSize, Plan, save_model
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.models import attention_flex
from wrpo_engine.training.models.attention_flex import family_attention_flex
from wrpo_engine.training.models.attention_segments import ScoreRule, attend_by_segment
from wrpo_engine.training.models.model import LogpModel

ON_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
LENGTHS = [(150, [30, 1, 70]), (7, [3]), (200, []), (120, [9, 131])]
"""721 tokens: five whole blocks and a part of one; families begin and end within blocks."""


@dataclass(frozen=True)
class Shape:
    """Attention of a model."""

    heads: int
    kv_heads: int
    head_size: int
    softcap: float | None = None
    window: int | None = None


SHAPES = {
    "Llama-3-8B": Shape(32, 8, 128),
    "Mistral-7B-v0.1 with its window": Shape(32, 8, 128, window=96),
    "Gemma-2-9B": Shape(16, 8, 256, softcap=50.0),
    "Gemma-2-9B with its window": Shape(16, 8, 256, softcap=50.0, window=96),
    "Phi-3-medium": Shape(40, 10, 128),
    "as many key-value heads as heads": Shape(8, 8, 64),
}
BOUNDS = {torch.float32: 1e-2, torch.bfloat16: 2e-2}
"""fp32 products may run in TF32."""


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the parameter's device; on a CPU FlexAttention runs as it is traced."""
    if request.param == "cpu":
        request.getfixturevalue("flex")
    return torch.device(request.param)


def heads_of(shape: Shape, tokens: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    counts = (shape.heads, shape.kv_heads, shape.kv_heads)
    drawn = [torch.randn(1, count, tokens, shape.head_size, generator=generator) for count in counts]
    return [tensor.to(device, dtype).requires_grad_() for tensor in drawn]


def attend(heads: list[Tensor], plan: Any, shape: Shape, *, exact: bool) -> tuple[Tensor, list[Tensor]]:
    """Return the output and the gradients of queries, keys and values."""
    function = attend_by_segment if exact else family_attention_flex
    output = function(heads[0], heads[1], heads[2], ScoreRule(plan, shape.head_size**-0.5, shape.softcap, shape.window))
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(4)).to(output.device, output.dtype)
    return output.detach(), list(torch.autograd.grad(output, heads, upstream))


CASES = [
    pytest.param(shape, dtype, "cuda", id=f"{name}, {str(dtype)[6:]}, CUDA", marks=ON_CUDA)
    for name, shape in SHAPES.items()
    for dtype in BOUNDS
]
CASES += [
    pytest.param(SHAPES[name], dtype, "cpu", id=f"{name}, {str(dtype)[6:]}, CPU", marks=pytest.mark.slow)
    for name, dtype in (("Llama-3-8B", torch.bfloat16), ("Gemma-2-9B with its window", torch.float32))
]


@pytest.mark.parametrize(("shape", "dtype", "device"), CASES, indirect=["device"])
def test_attention_of_real_models_is_that_of_segments_in_fp32(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> None:
    plan = plan_of(LENGTHS).to(device)
    heads = heads_of(shape, len(plan.positions_T), device, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in heads]
    ours, our_gradients = attend(heads, plan, shape, exact=False)
    theirs, their_gradients = attend(exact, plan, shape, exact=True)
    assert not attention_flex._Failure.is_known, "segments were compared with segments"
    bound = BOUNDS[dtype]
    torch.testing.assert_close(ours.double(), theirs, rtol=bound, atol=bound)
    for our, their in zip(our_gradients, their_gradients, strict=True):
        limit = 3 * bound * max(1.0, float(their.abs().max()))
        torch.testing.assert_close(our.double(), their, rtol=3 * bound, atol=limit)


MODELS = {
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128},
    "gemma2": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "sliding_window": 8},
    "mistral": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "sliding_window": 8},
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_CUDA)])
@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("architecture", MODELS)
def test_log_probabilities_in_bf16_are_those_of_fp32_within_rounding(
    architecture: str, layout: Layout, device: str
) -> None:
    batch = collate(ROWS, layout).to(torch.device(device))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        causal_lm = make_causal_lm(architecture, dtype=torch.float32, settings=MODELS[architecture])
        model = LogpModel(causal_lm.to(device, dtype), layout)
        logps = model(batch=batch)
        assert logps.dtype == torch.float32
        logps.sum().backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        results.append((logps.detach() / batch.lengths_S, float(norm)))
    (exact, exact_norm), (rounded, rounded_norm) = results
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05)
    assert rounded_norm == pytest.approx(exact_norm, rel=0.05)


SIZE = ModelSize(2, 256, 384, 2, 1, 500)
"""Heads of size 128."""
CASE = Case("one process", SIZE, Lengths(40, 0.4, 8, 80), Lengths(20, 0.5, 4, 40), 4, 2)


def losses(module: str, model_dir: Path, **options: Any) -> list[float]:
    """Return the losses of three steps in a separate process."""
    plan = Plan(CASE, str(model_dir), warmup_steps=1, timed_steps=2, measure_memory=False)
    specification = {"each": [{"plan": plan.to_json(), **options}]}
    (answer,) = run_worker(module, specification, threads=1)["each"]
    found: list[float] = answer["losses"]
    return found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 5e-2)])
def test_one_process_at_every_zero_stage_reports_the_losses_of_a_plain_implementation(
    zero_stage: int, precision: str, tolerance: float, tmp_path: Path
) -> None:
    save_model(tmp_path, SIZE)
    expected = losses("benchmarks.training.padded", tmp_path)
    options = {"deepspeed": True, "zero_stage": zero_stage, "precision": precision}
    found = losses("benchmarks.training.ours", tmp_path, **options)
    assert found[0] == pytest.approx(0.6931472, abs=1e-6), "policy and reference differ before the first step"
    assert found == pytest.approx(expected, rel=tolerance)
