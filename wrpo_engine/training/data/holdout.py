"""Held-out rows: which ones they are, what their loss is, and what follows from it."""

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
"""In front of the names of the last evaluation's values among a stage's metrics."""
_STREAM = 0x686F6C64
"""Keeps the choice apart from the data order, which comes of the same seed."""


def split_rows(num_rows: int, params: HoldoutParams, seed: int) -> tuple[list[int], list[int]]:
    """Return (rows to train on, rows held out), each in the order of the input: a function of counts and seed alone."""
    count = max(1, round(num_rows * params.fraction))
    if count >= num_rows:
        raise ConfigError(
            "training.holdout.fraction",
            params.fraction,
            f"of {num_rows} rows nothing would be left to train on",
            "Use more rows, or leave training.holdout out.",
        )
    keys = np.random.PCG64(np.random.SeedSequence([seed, _STREAM])).random_raw(num_rows)
    held_out = sorted(int(index) for index in np.argsort(keys, kind="stable")[:count])
    chosen = set(held_out)
    return [index for index in range(num_rows) if index not in chosen], held_out


@dataclass
class EvaluationHistory:
    """The losses so far, and what they decide. Part of every checkpoint."""

    params: HoldoutParams
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(optimizer steps completed, loss), in order."""

    def is_due(self, done: int, num_steps: int) -> bool:
        return done % self.params.every_steps == 0 or done == num_steps

    def add(self, done: int, loss: float) -> bool:
        """Remember an evaluation; return whether its loss is the lowest so far. Of equal ones the first is the best."""
        is_best = not self.losses or loss < min(known for _, known in self.losses)
        self.losses.append((done, loss))
        return is_best

    @property
    def best_step(self) -> int | None:
        return min(self.losses, key=lambda entry: (entry[1], entry[0]))[0] if self.losses else None

    @property
    def ends_training(self) -> bool:
        """True once `patience` evaluations in a row have not been better than the best before them."""
        if self.params.patience is None or not self.losses:
            return False
        place = next(index for index, (step, _) in enumerate(self.losses) if step == self.best_step)
        return len(self.losses) - 1 - place >= self.params.patience

    def state(self) -> list[list[float]]:
        return [[step, loss] for step, loss in self.losses]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        self.losses = [(int(step), float(loss)) for step, loss in state]

    def forget_best(self) -> None:
        """Let only later evaluations be the best: the checkpoint of the best one is lost."""
        self.losses = []


@dataclass(frozen=True, slots=True)
class EvaluationLog:
    """eval.jsonl of rank 0: one row per evaluation."""

    path: Path
    is_main: bool

    def cut(self, step: int) -> list[dict[str, Any]]:
        """Forget rows after `step`, which a resumed run makes again; return the others."""
        if not self.is_main or not self.path.exists():
            return []
        kept = [(row, line) for row, line in read_rows(self.path) if row["step"] <= step]
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        temporary.write_text("".join(line for _, line in kept))
        temporary.replace(self.path)
        return [row for row, _ in kept]

    def write(self, row: Mapping[str, float]) -> None:
        if self.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(dict(row)) + "\n")
