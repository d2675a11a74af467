"""Held-out rows: split, evaluation history, early stopping and eval.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wrpo_engine.config import HoldoutParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.training.monitoring.metrics import read_rows

EVALUATION_FILE = "eval.jsonl"
PREFIX = "eval_"
"""Prefix of the last evaluation's values among a stage's metrics."""
_STREAM = 0x686F6C64
"""Separates the split from the data order, which uses the same seed."""


def split_rows(num_rows: int, params: HoldoutParams, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices (to train on, held out), each in the order of the input.

    The split depends on the number of rows, the fraction and the seed only. Raise ConfigError if no row would be left
    to train on.
    """
    count = max(1, round(num_rows * params.fraction))
    if count >= num_rows:
        raise ConfigError(
            "training.holdout.fraction",
            params.fraction,
            f"of {num_rows} rows none would be left to train on",
            "Use more rows, or leave training.holdout out.",
        )
    keys = np.random.PCG64(np.random.SeedSequence([seed, _STREAM])).random_raw(num_rows)
    held_out = sorted(int(index) for index in np.argsort(keys, kind="stable")[:count])
    excluded = set(held_out)
    return [index for index in range(num_rows) if index not in excluded], held_out


@dataclass
class EvaluationHistory:
    """The held-out losses so far, with the best step and early stopping; part of every checkpoint."""

    params: HoldoutParams
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(optimizer steps completed, loss), in order."""

    def is_due(self, done: int, num_steps: int) -> bool:
        """Return whether an evaluation follows `done` optimizer steps: every `every_steps`, and after the last one."""
        return done % self.params.every_steps == 0 or done == num_steps

    def add(self, done: int, loss: float) -> bool:
        """Record an evaluation; return whether its loss is the lowest so far. Among equal losses the first is best."""
        is_best = not self.losses or loss < min(known for _, known in self.losses)
        self.losses.append((done, loss))
        return is_best

    @property
    def best_step(self) -> int | None:
        """The step with the lowest loss; None without evaluations."""
        return min(self.losses, key=lambda entry: (entry[1], entry[0]))[0] if self.losses else None

    @property
    def ends_training(self) -> bool:
        """True once `params.patience` evaluations in a row have not improved the best loss before them."""
        if self.params.patience is None or not self.losses:
            return False
        place = next(index for index, (step, _) in enumerate(self.losses) if step == self.best_step)
        return len(self.losses) - 1 - place >= self.params.patience

    def state(self) -> list[list[float]]:
        """Return the losses as JSON values."""
        return [[step, loss] for step, loss in self.losses]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Load a state that `state` returned."""
        self.losses = [(int(step), float(loss)) for step, loss in state]

    def forget_best(self) -> None:
        """Remove all losses, because the checkpoint of the best one is lost; only later evaluations can be the best."""
        self.losses = []


@dataclass(frozen=True, slots=True)
class EvaluationLog:
    """eval.jsonl of rank 0: one row per evaluation."""

    path: Path
    is_main: bool

    def cut(self, step: int) -> list[dict[str, Any]]:
        """Remove rows after `step`, which a resumed run recomputes; return the others, [] on other ranks than 0."""
        if not self.is_main or not self.path.exists():
            return []
        kept = [(row, line) for row, line in read_rows(self.path) if row["step"] <= step]
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        temporary.write_text("".join(line for _, line in kept))
        temporary.replace(self.path)
        return [row for row, _ in kept]

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; only rank 0 writes."""
        if self.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(dict(row)) + "\n")
