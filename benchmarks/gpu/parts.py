"""The parts of the benchmark: what each measures, its time budget, and the columns of its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TOTAL_BUDGET_S = 20 * 60
"""All parts together, with the start of their processes, on one card."""


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of the rows, and how it is shown."""

    key: str
    title: str
    digits: int = 1
    is_share: bool = False
    """Shown in percent."""

    def text(self, value: object) -> str:
        if value is None:
            return "-"
        if isinstance(value, bool | str):
            return str(value)
        return f"{value:.{self.digits}%}" if self.is_share else f"{value:.{self.digits}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part: the worker module benchmarks.gpu.NAME, which runs in a separate process."""

    name: str
    what: str
    budget_s: int
    """Seconds after which the process is ended; its finished cases count."""
    columns: tuple[Column, ...]
    ratio: Column | None = None
    """Figure that is also shown as a ratio to that of the base case, which is the first row without an error."""
    higher_is_better: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return f"benchmarks.gpu.{self.name.replace('-', '_')}"


_MS = Column("step_ms", "step, ms")
_MEMORY = Column("peak_mib", "peak memory, MiB", 0)
_TOKENS = Column("tokens_per_s", "tokens/s", 0)

PARTS = (
    Part(
        name="layers",
        what="layers of an 8B model, forward and backward: attention, recomputation, generated kernels, layouts",
        budget_s=310,
        columns=(_MS, _TOKENS, Column("mfu", "MFU", 1, is_share=True), _MEMORY),
        ratio=_MS,
    ),
    Part(
        name="head",
        what="log-probabilities by a head of 128,256 tokens: chunks, kept softmax, logits in fp32",
        budget_s=70,
        columns=(
            _MS,
            Column("product_ms", "logits only, ms"),
            _MEMORY,
            Column("largest_error", "largest error, nats", 5),
        ),
        ratio=_MS,
    ),
    Part(
        name="training",
        what="a step of DPO next to TRL's DPOTrainer on the same tokens, and a step of WRPO-DPO",
        budget_s=240,
        columns=(_MS, Column("rows_per_s", "rows/s", 2), _MEMORY, Column("loss_difference", "loss difference", 5)),
        ratio=_MS,
    ),
    Part(
        name="sampling",
        what="the sample stage next to a bare LLM.generate, with vLLM's engine in its own process",
        budget_s=180,
        columns=(_TOKENS, Column("seconds", "seconds", 1)),
        ratio=_TOKENS,
        higher_is_better=True,
        environ={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    ),
    Part(
        name="scoring",
        what="reward scoring: padded rows, packed rows, vLLM's pooling runner",
        budget_s=140,
        columns=(_TOKENS, Column("seconds", "seconds", 1), Column("score_difference", "score difference", 4)),
        ratio=_TOKENS,
        higher_is_better=True,
    ),
    Part(
        name="soak",
        what="300 steps, each with another mask: compilations, fallbacks, agreement with attention by segment",
        budget_s=160,
        columns=(
            Column("steps", "steps", 0),
            Column("compilations_after_warm_up", "compilations after warm-up", 0),
            Column("fallbacks", "fallbacks", 0),
            Column("loss_difference", "loss difference", 6),
            Column("gradient_difference", "gradient difference, share of tolerance", 3),
            _MS,
        ),
    ),
    Part(
        name="checkpoints",
        what="save and restore of weights and optimizer state through the engine's checkpoints",
        budget_s=100,
        columns=(
            Column("gib", "GiB", 2),
            Column("held_s_per_gb", "training held, s/GB", 3),
            Column("saved_s_per_gb", "save, s/GB", 3),
            Column("restored_s_per_gb", "restore, s/GB", 3),
        ),
        ratio=Column("held_s_per_gb", "training held, s/GB", 3),
    ),
)
