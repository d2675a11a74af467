"""Training tasks: loss numerators, denominators and statistics of SFT and of preference optimisation.

The loss of a step is sum(numerators over all rows of the global batch) / denominator. For preference optimisation the
denominator is the number of rows, for SFT the number of response tokens. Both count the *global* batch, regardless of
how it is split into ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from typing_extensions import override

from wrpo_engine.config import SftParams, TrainParams
from wrpo_engine.training.batch.collate import Batch
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.objectives.alpha import alpha_at
from wrpo_engine.training.objectives.losses import PerResponse
from wrpo_engine.training.objectives.preference import REJECTED, PreferenceObjective


@dataclass(frozen=True, slots=True)
class RowTerms:
    """The per-row values of one micro-batch, which the loop sums over rows."""

    numerators: Tensor
    """[B], with a graph."""
    statistics: dict[str, Tensor]
    """Name -> [B], detached; the means over the global batch's rows are logged."""


class Task(Protocol):
    """The interface of SFT and preference optimisation to the training loop."""

    @property
    def needs_reference(self) -> bool:
        """True if `terms` needs the reference's log-probabilities."""
        ...

    @property
    def responses_per_row(self) -> int:
        """Sequences of a row: K preferred responses and one rejected response, or one response for SFT."""
        ...

    def statistic_names(self) -> list[str]:
        """Return the names of the statistics, in the order in which they are logged."""
        ...

    def denominator(self, rows: Sequence[TokenRow]) -> float:
        """Return the divisor of the step's summed numerators; `rows` is the global batch."""
        ...

    def settings(self, step: int, num_steps: int) -> dict[str, float]:
        """Return the values that are constant over a step and logged with it, for example alpha."""
        ...

    def evaluation_settings(self) -> dict[str, float]:
        """Return the constant settings of all evaluations on held-out rows, so that their losses can be compared."""
        ...

    def terms(self, batch: Batch, logps_S: Tensor, reference_S: Tensor | None, settings: dict[str, float]) -> RowTerms:
        """Return loss numerators and statistics of a micro-batch; inputs are summed log-probabilities [S] in nats."""
        ...

    def entropy_names(self) -> list[str]:
        """Return the names of the values of `entropies`, in the order in which they are logged."""
        ...

    def entropies(self, batch: Batch, entropies_S: Tensor) -> dict[str, Tensor]:
        """Return name -> [B], the mean entropy (nats) per token with loss, from summed entropies; for training only."""
        ...


FUSION = "fusion"
"""Statistic of SFT with fusion: mean of the fusion loss over a response's tokens, in nats."""


@dataclass(frozen=True, slots=True)
class SftTask(Task):
    """Mean negative log-likelihood over the global batch's tokens with loss: response tokens, or all (lossTokens).

    With fusion, the mean over the same tokens of weight * fusion loss + (1 - weight) * negative log-likelihood.
    """

    params: SftParams

    @property
    @override
    def needs_reference(self) -> bool:
        return False

    @property
    @override
    def responses_per_row(self) -> int:
        return 1

    @property
    def _fusion_weight(self) -> float:
        return 0.0 if self.params.fusion is None else self.params.fusion.weight

    @override
    def statistic_names(self) -> list[str]:
        return ["logps", *([FUSION] if self._fusion_weight else []), "lengths"]

    @override
    def denominator(self, rows: Sequence[TokenRow]) -> float:
        return float(sum(row.num_loss_tokens for row in rows))

    @override
    def settings(self, step: int, num_steps: int) -> dict[str, float]:
        return {}

    @override
    def evaluation_settings(self) -> dict[str, float]:
        return {}

    @override
    def terms(
        self,
        batch: Batch,
        logps_S: Tensor,
        reference_S: Tensor | None,
        settings: dict[str, float],
    ) -> RowTerms:
        if batch.soft is None:
            return RowTerms(-logps_S, {"logps": logps_S.detach(), "lengths": batch.lengths_S})
        # The soft targets hold both losses; the share of the responses' own tokens is known by itself.
        mixed_S, labels_S = logps_S.unbind(1)
        statistics = {"logps": labels_S.detach(), "lengths": batch.lengths_S}
        if weight := self._fusion_weight:
            fused_S = (mixed_S.detach() - (1 - weight) * labels_S.detach()) / weight
            statistics[FUSION] = -fused_S / batch.lengths_S
        return RowTerms(-mixed_S, statistics)

    @override
    def entropy_names(self) -> list[str]:
        return ["entropy"]

    @override
    def entropies(self, batch: Batch, entropies_S: Tensor) -> dict[str, Tensor]:
        return {"entropy": entropies_S / batch.lengths_S}


def per_response(values_S: Tensor, responses_per_row: int) -> PerResponse:
    """Split [S] into preferred [B, K] and rejected [B]; the rejected response is the last of each row."""
    values_BK = values_S.view(-1, responses_per_row)
    return PerResponse(preferred=values_BK[:, :-1], rejected=values_BK[:, -1])


@dataclass(frozen=True, slots=True)
class PreferenceTask(Task):
    """Preference optimisation; every row has the same weight."""

    params: TrainParams
    objective: PreferenceObjective

    @property
    @override
    def needs_reference(self) -> bool:
        return self.objective.needs_reference

    @property
    @override
    def responses_per_row(self) -> int:
        return len(self._kinds)

    @property
    def _kinds(self) -> tuple[str, ...]:
        """The kinds of responses of a row, in the order of their columns."""
        return (*self.objective.preferred, REJECTED)

    @override
    def statistic_names(self) -> list[str]:
        kinds = self._kinds
        names = [f"rewards_{kind}" for kind in kinds]
        if self.objective.has_source:
            names += ["margin", "margin_source", "margin_target"]
            names += ["accuracy_source", "accuracy_target", "accuracy_source_over_target"]
        else:
            names += ["margin", "accuracy"]
        return [*names, *(f"logps_{kind}" for kind in kinds), *(f"lengths_{kind}" for kind in kinds)]

    @override
    def denominator(self, rows: Sequence[TokenRow]) -> float:
        return float(len(rows))

    @override
    def settings(self, step: int, num_steps: int) -> dict[str, float]:
        if not self.objective.has_source:
            return {}
        return {"alpha": alpha_at(step, num_steps, self.params.alpha)}

    @override
    def evaluation_settings(self) -> dict[str, float]:
        return {"alpha": self.params.alpha.max} if self.objective.has_source else {}

    @override
    def entropy_names(self) -> list[str]:
        return [f"entropy_{kind}" for kind in self._kinds]

    @override
    def entropies(self, batch: Batch, entropies_S: Tensor) -> dict[str, Tensor]:
        columns = (entropies_S / batch.lengths_S).view(-1, self.responses_per_row).unbind(dim=1)
        return dict(zip(self.entropy_names(), columns, strict=True))

    @override
    def terms(self, batch: Batch, logps_S: Tensor, reference_S: Tensor | None, settings: dict[str, float]) -> RowTerms:
        policy = per_response(logps_S, self.responses_per_row)
        reference = None if reference_S is None else per_response(reference_S, self.responses_per_row)
        lengths = per_response(batch.lengths_S, self.responses_per_row)
        weights = self.objective.weights(settings.get("alpha", 0.0))
        terms = self.objective.terms(policy, reference, lengths, weights=weights)
        statistics: dict[str, Tensor] = {"margin": terms.margin}
        for column, kind in enumerate(self.objective.preferred):
            statistics[f"rewards_{kind}"] = terms.rewards.preferred[:, column]
            statistics[f"logps_{kind}"] = policy.preferred[:, column].detach()
            statistics[f"lengths_{kind}"] = lengths.preferred[:, column]
        statistics[f"rewards_{REJECTED}"] = rejected = terms.rewards.rejected
        statistics[f"logps_{REJECTED}"] = policy.rejected.detach()
        statistics[f"lengths_{REJECTED}"] = lengths.rejected
        # Rewards are compared as [B] with [B]. [B] with [B, 1] would broadcast and compare every pair of rows.
        if self.objective.has_source:
            source, target = terms.rewards.preferred.unbind(dim=1)
            statistics["margin_source"] = source - rejected
            statistics["margin_target"] = target - rejected
            statistics["accuracy_source"] = (source > rejected).to(rejected.dtype)
            statistics["accuracy_target"] = (target > rejected).to(rejected.dtype)
            statistics["accuracy_source_over_target"] = (source > target).to(rejected.dtype)
        else:
            statistics["accuracy"] = (terms.rewards.preferred[:, 0] > rejected).to(rejected.dtype)
        return RowTerms(terms.loss, statistics)
