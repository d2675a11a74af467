"""Measurement of the sides of a comparison, alternately and in separate processes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.process import run_worker
from benchmarks.common.summary import Summary, alternating
from benchmarks.training.bound import model_cost, needed_operations, padded_operations, trl_operations
from benchmarks.training.cases import Effort
from benchmarks.training.workload import Case, Plan, make_rows, save_model
from wrpo_engine.training.batch.flops import ModelCost

LOSS_TOLERANCE = 1e-3
"""Relative tolerance. Sides that train on the same tokens from the same weights report the same losses."""


class DisagreementError(RuntimeError):
    """Two sides did not compute the same losses, so that their times cannot be compared."""


@dataclass(frozen=True)
class Side:
    """An implementation and its worker processes."""

    name: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    world_size: int = 1
    threads: int = 2
    rounds: int | None = None
    """Fewer rounds than the others, to save time; None for the same number."""


@dataclass(frozen=True)
class Measured:
    """Measurements of one side on one case."""

    seconds: Summary
    losses: tuple[float, ...]
    memory_bytes: int | None
    memory_source: str
    reference_seconds: float = 0.0
    """One-time cost of the reference's log-probabilities for the rows of one step."""
    layout: str | None = None


def measure(cases: Sequence[Case], sides: Sequence[Side], effort: Effort, *, memory: bool) -> list[dict[str, Measured]]:
    """Return the measurements of every side on every case. A process runs all cases, which share one model."""
    sizes = {case.model for case in cases}
    if len(sizes) != 1:
        raise ValueError(f"the cases of one measurement share a model; got {sizes}")
    by_name = {side.name: side for side in sides}
    answers: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in by_name}
    with tempfile.TemporaryDirectory(prefix="wrpo-bench-model-") as directory:
        save_model(Path(directory), sizes.pop())
        for name in alternating(list(by_name), effort.rounds):
            side, done = by_name[name], len(answers[name])
            if side.rounds is not None and done >= side.rounds:
                continue
            answers[name].append(_answer(side, cases, effort, directory, memory=memory))
    measured = [
        {name: _combined([answer[index] for answer in rounds]) for name, rounds in answers.items()}
        for index in range(len(cases))
    ]
    for case, figures in zip(cases, measured, strict=True):
        require_same_losses(case.name, figures)
    return measured


def _answer(side: Side, cases: Sequence[Case], effort: Effort, model_dir: str, *, memory: bool) -> list[dict[str, Any]]:
    plans = [Plan(case, model_dir, effort.warmup_steps, effort.timed_steps, memory) for case in cases]
    specification = {"each": [{"plan": plan.to_json(), **side.options} for plan in plans]}
    result = run_worker(side.module, specification, threads=side.threads, world_size=side.world_size, timeout_s=3600)
    answers: list[dict[str, Any]] = result["each"]
    return answers


def _combined(rounds: Sequence[dict[str, Any]]) -> Measured:
    first = rounds[0]
    memory = [answer["step_memory"] for answer in rounds if answer["step_memory"] is not None]
    return Measured(
        seconds=typical_step([answer["step_seconds"] for answer in rounds]),
        losses=tuple(first["losses"]),
        memory_bytes=round(Summary.of(memory).median) if memory else None,
        memory_source=first["memory_source"],
        reference_seconds=Summary.of([answer.get("reference_seconds_per_step", 0.0) for answer in rounds]).median,
        layout=first.get("layout"),
    )


def typical_step(rounds: Sequence[Sequence[float]]) -> Summary:
    """Return the mean over steps, whose rows differ, of each step's median over rounds, with the extremes of all.

    So both sides are compared on the same rows, regardless of the lengths of single steps.
    """
    medians = [Summary.of(same_step).median for same_step in zip(*rounds, strict=True)]
    every = Summary.of([seconds for steps in rounds for seconds in steps])
    return Summary(sum(medians) / len(medians), every.low, every.high, every.count)


def require_same_losses(case: str, figures: Mapping[str, Measured]) -> float:
    """Return the largest relative difference between any side's losses and the first side's."""
    largest = 0.0
    (name, first), *others = figures.items()
    for other_name, other in others:
        for step, (own, peer) in enumerate(zip(first.losses, other.losses, strict=True)):
            difference = abs(own - peer) / abs(peer)
            largest = max(largest, difference)
            if not difference <= LOSS_TOLERANCE:
                raise DisagreementError(
                    f"{case}: at step {step + 1} {name} has the loss {own:.6f} and {other_name} {peer:.6f}"
                )
    return largest


@dataclass(frozen=True)
class Comparison:
    """Our side against one peer on one case, with all reported figures."""

    case: str
    shape: str
    peer: str
    triples_per_step: int
    ours: Measured
    theirs: Measured
    allowed: float
    """Upper bound of the speed-up by operation counts."""

    @property
    def speed_up(self) -> float:
        return self.theirs.seconds.median / self.ours.seconds.median

    @property
    def speed_up_with_reference(self) -> float:
        """Return the speed-up over one epoch, with our pass for the reference's log-probabilities."""
        return self.theirs.seconds.median / (self.ours.seconds.median + self.ours.reference_seconds)

    @property
    def share(self) -> float:
        """Return the share of the upper bound by operation counts."""
        return self.speed_up / self.allowed

    @property
    def memory_ratio(self) -> float | None:
        if self.ours.memory_bytes is None or self.theirs.memory_bytes is None:
            return None
        return self.ours.memory_bytes / self.theirs.memory_bytes

    def to_json(self) -> dict[str, Any]:
        """Return every figure, from which the README's table is made."""
        return {
            "case": self.case,
            "shape": self.shape,
            "peer": self.peer,
            "triples_per_second": [self.triples_per_step / side.seconds.median for side in (self.ours, self.theirs)],
            "step_seconds": [
                [side.seconds.median, side.seconds.low, side.seconds.high, side.seconds.count]
                for side in (self.ours, self.theirs)
            ],
            "speed_up": self.speed_up,
            "allowed": self.allowed,
            "share": self.share,
            "speed_up_with_reference": self.speed_up_with_reference,
            "reference_seconds_per_step": self.ours.reference_seconds,
            "step_memory_bytes": [self.ours.memory_bytes, self.theirs.memory_bytes],
            "memory_ratio": self.memory_ratio,
            "memory_source": self.ours.memory_source,
            "layout": self.ours.layout,
        }


def allowed_speed_up(case: Case, peer: str, effort: Effort) -> float:
    """Return the ratio of operations over the timed steps."""
    cost = model_cost(case.model)
    rows = make_rows(case, (effort.warmup_steps + effort.timed_steps) * case.triples_per_step)
    theirs = ours = 0
    for step in range(effort.warmup_steps, effort.warmup_steps + effort.timed_steps):
        step_rows = rows[step * case.triples_per_step : (step + 1) * case.triples_per_step]
        theirs += _peer_operations(cost, step_rows, case, peer)
        ours += needed_operations(cost, step_rows)
    return theirs / ours


def _peer_operations(cost: ModelCost, rows: Sequence[Any], case: Case, peer: str) -> int:
    if peer == "padded":
        return padded_operations(cost, rows, triples_per_pass=case.triples_per_pass)
    precomputed = peer == "TRL, reference precomputed"
    return trl_operations(cost, rows, triples_per_pass=case.triples_per_pass, precomputed=precomputed)
