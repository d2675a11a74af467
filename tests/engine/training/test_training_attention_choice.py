"""The trial of FlexAttention at the start: backward too, the same decision on all ranks, and a reason in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_support import save_tiny_model
from layout_support import ROWS
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from training_support import FAST, plain_backend, triples_frame

from wrpo_engine.errors import ConfigError
from wrpo_engine.training import session, stage
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.models import attention, attention_choice, attention_flex
from wrpo_engine.training.models.attention_choice import (
    AttentionShape,
    Trial,
    choose_attention,
    implementation,
    try_attention,
)
from wrpo_engine.training.models.attention_segments import ScoreRule, attend_by_segment
from wrpo_engine.training.models.model import LogpModel, load_causal_lm

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = AttentionShape(heads=4, key_value_heads=2, head_size=16, dtype=torch.bfloat16)
GEMMA = AttentionShape(heads=2, key_value_heads=1, head_size=8, dtype=torch.float32, softcap=5.0, has_window=True)


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    attention_flex.use_segments(False)
    yield
    attention_flex.use_segments(False)


class Double:
    """Attention by segment that records how it is called, and fails as requested."""

    def __init__(self, *, fault: str = "") -> None:
        self.fault = fault
        self.calls: list[tuple[tuple[int, ...], float | None, int | None, bool]] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rule: ScoreRule,
    ) -> Tensor:
        window = rule.window
        self.calls.append((tuple(query.shape), rule.softcap, window, torch.is_grad_enabled()))
        output = attend_by_segment(query, key, value, rule)
        if self.fault == "forward":
            raise RuntimeError("out of resource: shared memory\nRequired: 294912")
        if self.fault == "window" and window is not None:
            return output * 1.2
        if not output.requires_grad:
            return output
        if self.fault == "backward":
            output.register_hook(_fail)
        if self.fault == "wrong gradient":
            value.register_hook(lambda gradient: gradient * 1.1)
        if self.fault == "NaN in the gradient":
            key.register_hook(lambda gradient: gradient * float("nan"))
        if self.fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return output


def _fail(_gradient: Tensor) -> None:
    raise RuntimeError("No valid triton configs")


@pytest.mark.parametrize("shape", [SHAPE, GEMMA])
def test_attention_that_equals_segments_passes_its_trial(shape: AttentionShape) -> None:
    double = Double()
    assert try_attention(Trial(shape, CPU, double)) is None
    windows = (None, 64) if shape.has_window else (None,)
    expected = [
        ((1, shape.heads, 310, shape.head_size), shape.softcap, window, grad)
        for window in windows
        for grad in (True, False)
    ]
    assert sorted(map(str, double.calls)) == sorted(map(str, expected))


PROBLEMS = {
    "forward": "RuntimeError: out of resource: shared memory",
    "backward": "RuntimeError: No valid triton configs",
    "wrong gradient": "its gradient of the value differs from that of attention by segment by 0.1",
    "NaN in the gradient": "its gradient of the key differs from that of attention by segment by nan",
    "window": "its output differs from that of attention by segment by 0.2",
}


@pytest.mark.parametrize(("fault", "problem"), PROBLEMS.items())
def test_attention_that_fails_or_is_wrong_in_either_direction_fails_its_trial(fault: str, problem: str) -> None:
    found = try_attention(Trial(GEMMA, CPU, Double(fault=fault)))
    assert found is not None
    assert found.startswith(problem)


def test_exhausted_memory_is_no_reason_for_another_attention() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        try_attention(Trial(SHAPE, CPU, Double(fault="memory")))


def choose(
    requested: Any, *, fault: str = "", layout: Layout = Layout.SHARED_PREFIX, device: torch.device = CPU
) -> None:
    choose_attention(requested, layout, Trial(SHAPE, device, Double(fault=fault)), Group())


@pytest.mark.parametrize("failed", [None, 0, 2])
def test_one_failed_rank_makes_all_ranks_compute_segments_and_the_log_names_it(
    failed: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ranks 0 to 2 of three, each with what it finds itself; the GPU is this CPU."""
    problems = [None if rank != failed else "RuntimeError: No valid triton configs" for rank in range(3)]
    monkeypatch.setattr(Group, "gather", lambda _self, _own: problems)
    monkeypatch.setattr(attention_choice, "try_attention", lambda *_: None)
    with caplog.at_level(logging.WARNING, "wrpo_engine"):
        for rank in range(3):
            attention_flex.use_segments(rank == 1)
            choose_attention("auto", Layout.PACKED, Trial(SHAPE, GPU), Group(rank, 3))
            assert attention_flex.uses_segments() is (failed is not None)
    expected = (
        f"FlexAttention failed its trial on 1 of 3 ranks; rank {failed}: RuntimeError: No valid triton configs. "
        "All ranks compute attention segment by segment, which is slower"
    )
    assert caplog.messages == ([expected] if failed is not None else [])


def test_flex_is_refused_where_it_fails_and_segments_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "try_attention", lambda *_: "RuntimeError: No valid triton configs")
    with pytest.raises(ConfigError) as caught:
        choose("flex", device=GPU)
    assert str(caught.value) == (
        "training.attention is 'flex': FlexAttention failed its trial on 1 of 1 ranks; "
        "rank 0: RuntimeError: No valid triton configs"
    )
    choose("segments", device=GPU)
    choose("auto")
    assert not attention_flex.uses_segments()


NO_EFFECT = {
    "flex on a CPU": (
        {"requested": "flex"},
        "training.attention is 'flex': FlexAttention trains on GPUs only, and this process has none",
    ),
    "segments of padded rows": (
        {"requested": "segments", "layout": Layout.PADDED},
        "training.attention is 'segments': it has no effect: the layout padded uses Transformers' attention",
    ),
}


@pytest.mark.parametrize(("settings", "message"), NO_EFFECT.values(), ids=NO_EFFECT.keys())
def test_a_requested_attention_without_effect_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(**settings)
    assert str(caught.value) == message


@pytest.fixture
def failing_backward_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine's compilation, whose forward graph runs as it is traced and whose backward graph does not compile."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor.exc import InductorError

    def forward(graph: Any, _inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    def backward(_graph: Any, _inputs: Any) -> Any:
        raise InductorError(
            RuntimeError("No valid triton configs. OutOfResources: out of resource: shared memory"), None
        )

    compile_with_inductor = torch.compile
    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward)
    torch.compiler.reset()
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_heads: None)
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile_with_inductor(function, **options, backend=backend)
    )
    attention_flex._compiled.cache_clear()
    yield
    attention_flex._compiled.cache_clear()
    torch.compiler.reset()


@pytest.mark.usefixtures("failing_backward_compiler")
def test_a_backward_kernel_that_does_not_compile_is_found_before_the_first_step() -> None:
    """Its forward kernel compiles, so that the first failure would be in the first step's backward pass."""
    shape = AttentionShape(heads=2, key_value_heads=1, head_size=8, dtype=torch.float32)
    found = try_attention(Trial(shape, CPU))
    assert found is not None
    assert "No valid triton configs" in found


@pytest.fixture
def make_run(
    make_ctx: Callable[..., Any],
    commit_artifact: Callable[..., Any],
    training_model_dir: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    """Return the context of a training stage without DeepSpeed, with one epoch of three steps."""
    monkeypatch.setattr(session, "make_backend", plain_backend)

    def make(**runtime: Any) -> Any:
        inputs = {"triples": commit_artifact("curate-triples", {"triples.parquet": triples_frame()})}
        params = {"stage": "train", "model": {"name": str(training_model_dir)}, **FAST, "epochs": 1}
        return make_ctx(params, inputs, runtime={"micro_batch_tokens": 400, **runtime})

    return make


def test_a_failed_trial_shows_in_every_row_of_metrics_and_in_the_progress(
    make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[float | None] = []
    ctx = make_run()
    monkeypatch.setattr(session, "computing_device", lambda: GPU)
    monkeypatch.setattr(attention_choice, "try_attention", lambda *_: "RuntimeError: No valid triton configs")

    def update(*_done: float, metrics: dict[str, float] | None = None, **_message: str) -> None:
        if metrics is not None:
            shown.append(metrics.get("attention_fallback"))

    monkeypatch.setattr(ctx.progress, "update", update)
    stage.run_train(ctx)
    rows = (ctx.output.committed().directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["attention_fallback"] for row in rows] == shown == [1, 1, 1]


def test_the_attention_that_the_run_requests_is_checked_at_its_start(make_run: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"^training\.attention is 'flex': FlexAttention trains on GPUs only"):
        stage.run_train(make_run(attention="flex"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "shape",
    [
        AttentionShape(32, 8, 128, torch.bfloat16),
        AttentionShape(16, 8, 256, torch.bfloat16, softcap=50.0, has_window=True),
        AttentionShape(4, 2, 64, torch.float32),
    ],
)
def test_on_a_gpu_flex_attention_passes_its_trial(shape: AttentionShape) -> None:
    assert try_attention(Trial(shape, GPU)) is None


CONFIGS = {
    "llama": (
        {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "sliding_window": None},
        AttentionShape(32, 8, 128, torch.bfloat16),
    ),
    "gemma-2": (
        {
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "hidden_size": 3584,
            "head_dim": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
        },
        AttentionShape(16, 8, 256, torch.bfloat16, softcap=50.0, has_window=True),
    ),
    "gpt-2": ({"num_attention_heads": 12, "hidden_size": 768}, AttentionShape(12, 12, 64, torch.bfloat16)),
}


@pytest.mark.parametrize(("config", "shape"), CONFIGS.values(), ids=CONFIGS.keys())
def test_the_trial_has_the_shape_of_the_models_attention(config: dict[str, Any], shape: AttentionShape) -> None:
    assert AttentionShape.of(SimpleNamespace(**config), torch.bfloat16) == shape


def test_segments_are_computed_on_request_on_a_cpu_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [implementation("auto"), implementation("flex"), implementation("segments")] == [
        attention.IMPLEMENTATION,
        attention.IMPLEMENTATION,
        attention.SEGMENTS,
    ]
    calls: list[int] = []

    def segments(query: Tensor, *arguments: Any) -> Tensor:
        calls.append(query.shape[2])
        return attend_by_segment(query, *arguments)

    monkeypatch.setattr(attention, "attend_by_segment", segments)
    model_dir = save_tiny_model(tmp_path)
    batch = collate(ROWS, Layout.SHARED_PREFIX)
    results = []
    for name in (attention.IMPLEMENTATION, attention.SEGMENTS):
        causal_lm = load_causal_lm(
            model_dir, precision="float32", gradient_checkpointing=False, trust_remote_code=False
        )
        results.append(LogpModel(causal_lm, Layout.SHARED_PREFIX, implementation=name)(batch))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)
    assert len(calls) == causal_lm.config.num_hidden_layers
