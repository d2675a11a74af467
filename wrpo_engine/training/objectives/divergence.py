"""Reward divergence: the margin still grows while the chosen responses themselves become improbable.

Preference losses depend on differences only. When the learning rate or beta is wrong for the data, the policy can widen
the margin by making *every* response improbable, the rejected one faster. The loss keeps falling while the model
degrades.

The rule, over the last two windows of WINDOW optimizer steps each:

    fall(step)  = largest over the preferred kinds of -(mean over the step's tokens of log pi - log pi_ref), nats/token
    diverging   = mean fall of the later window > LIMIT  and  mean margin of the later > mean margin of the earlier

Forms without a reference (SimPO) compare with the mean log-prob per token of the run's first step. The metric
`reward_divergence` is 1 from the first step on which the rule holds, and stays 1: the run has diverged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wrpo_engine.config import TrainParams
from wrpo_engine.training.objectives.preference import PreferenceObjective, Reading

WINDOW = 5
"""Optimizer steps; the rule can hold from step 2 * WINDOW on."""
LIMIT_NATS = 1.0
"""Per token: every token of the chosen responses is e times less probable than it was. Healthy runs stay below 0.3."""


@dataclass
class RewardDivergence:
    """Detects reward divergence in the rows of metrics; its state is part of checkpoints, so that resuming is exact."""

    params: TrainParams
    window: list[tuple[float, float]] = field(default_factory=list)
    """(fall, margin) of the last 2 * WINDOW steps."""
    first_logps: dict[str, float] = field(default_factory=dict)
    """Forms without a reference: mean log-prob per token of the run's first step."""
    diverged: bool = False

    def observe(self, row: Mapping[str, float]) -> float:
        """Record a step's row of metrics and return the value of `reward_divergence`: 1.0 or 0.0."""
        self.window = [*self.window, (self._fall(row), row["margin"])][-2 * WINDOW :]
        self.diverged = self.diverged or _is_diverging(self.window)
        return float(self.diverged)

    def warning(self, step: int) -> str:
        """Return the log message for the first step with a divergence."""
        fall = sum(fall for fall, _ in self.window[WINDOW:]) / WINDOW
        return (
            f"reward divergence at step {step}: the chosen responses have become less probable by {fall:.2f} nats per "
            "token while the margin grows; lower training.learningRate, raise training.beta (IPO: training.tau) or set "
            "training.nllWeight"
        )

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, as JSON values."""
        return {
            "window": [list(pair) for pair in self.window],
            "first_logps": self.first_logps,
            "diverged": self.diverged,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load a state that `state` returned."""
        self.window = [(fall, margin) for fall, margin in state["window"]]
        self.first_logps = dict(state["first_logps"])
        self.diverged = state["diverged"]

    def _fall(self, row: Mapping[str, float]) -> float:
        objective = PreferenceObjective(self.params)
        now = {kind: objective.per_token(_reading(row, kind)) for kind in objective.preferred}
        if objective.needs_reference:
            return max(-value for value in now.values())
        self.first_logps = self.first_logps or now
        return max(self.first_logps[kind] - value for kind, value in now.items())


def _reading(row: Mapping[str, float], kind: str) -> Reading:
    return Reading(reward=row[f"rewards_{kind}"], logps=row[f"logps_{kind}"], length=row[f"lengths_{kind}"])


def _is_diverging(window: list[tuple[float, float]]) -> bool:
    if len(window) < 2 * WINDOW:
        return False
    earlier, later = window[:WINDOW], window[WINDOW:]
    fall = sum(fall for fall, _ in later) / WINDOW
    growth = sum(margin for _, margin in later) - sum(margin for _, margin in earlier)
    return fall > LIMIT_NATS and growth > 0
