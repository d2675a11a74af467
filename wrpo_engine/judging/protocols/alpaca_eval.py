"""AlpacaEval 2: a judge prefers the baseline's or the model's answer; win rates, raw and length-controlled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wrpo_engine.bundles.templates import ALPACA_FIELDS, ALPACA_PROMPT, DELIMITERS, check_templates
from wrpo_engine.comparison.length_control import details_of
from wrpo_engine.contract.benchmarks import JudgeFields
from wrpo_engine.errors import DataError
from wrpo_engine.judging.protocol import Ask, Item, ItemOutcome, Outcome, Reply, Summary, Transcript, Verdict
from wrpo_engine.judging.protocols.alpaca_files import annotations_file, leaderboard_file
from wrpo_engine.judging.protocols.counting import counts
from wrpo_engine.judging.protocols.intervals import RESAMPLES, SEED, interval, mean_interval
from wrpo_engine.judging.protocols.length_control import (
    Judged,
    LengthControl,
    Regulariser,
    can_control,
    length_control,
    refit_of,
    rows_by_item,
)
from wrpo_engine.judging.protocols.preferences import (
    DRAW,
    FIRST,
    SECOND,
    chance_of_text,
    first_chance,
    is_switched,
    preference_of,
    win_rates,
)
from wrpo_engine.judging.protocols.prompts import baseline_of, chatml_messages, question_of, without_thoughts

_TOP_LOGPROBS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulties:
    """What the full form of the length control needs, all from `df_gamed.csv`."""

    regulariser: Regulariser
    by_index: Mapping[int, float]
    """Position of an item in the bundle -> its difficulty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlpacaEval:
    """The protocol with one judge's settings."""

    judge: JudgeFields
    templates: Mapping[str, str]
    difficulties: Difficulties | None = None
    """None: only LC-minimal is computed."""
    order_seed: int = 0
    baseline_names: Mapping[str, str]
    """Item id -> the model that gave the baseline's answer, for native files."""
    positional: bool = False
    """Join difficulties by the row among the valid answers, as the original does, for comparisons with it."""

    def __post_init__(self) -> None:
        check_templates("AlpacaEval2", self.templates)
        chatml_messages(self.templates[ALPACA_PROMPT], dict.fromkeys(ALPACA_FIELDS, ""), name=ALPACA_PROMPT)

    @property
    def rounds(self) -> int:
        """One."""
        return 1

    def asks(self, item: Item, answer: Sequence[str]) -> list[Ask]:
        """Return the question, whose order depends on the instruction; none if the answers are equal."""
        baseline = baseline_of(item)
        if answer[0] == baseline:
            return []
        switched = self._is_switched(item)
        first, second = (answer[0], baseline) if switched else (baseline, answer[0])
        values = {"instruction": question_of(item), "output_1": first, "output_2": second}
        return [
            Ask(
                item_id=item.item_id,
                order=int(switched),
                turn=0,
                messages=chatml_messages(self.templates[ALPACA_PROMPT], values, name=ALPACA_PROMPT),
                max_tokens=self.judge.max_tokens or 1,
                temperature=1.0 if self.judge.temperature is None else self.judge.temperature,
                top_logprobs=None if self.judge.protocol == "Text" else _TOP_LOGPROBS,
                prompt_name=ALPACA_PROMPT,
            )
        ]

    def settled(self, item: Item, answer: Sequence[str]) -> list[Verdict]:
        """Return a draw if the answers are equal."""
        if answer[0] != baseline_of(item):
            return []
        order = int(self._is_switched(item))
        return [Verdict(item_id=item.item_id, order=order, turn=0, outcome=Outcome.OK, verdict="equal", value=DRAW)]

    def follow_up(self, ask: Ask, replies: Sequence[Reply]) -> Ask | None:  # noqa: ARG002
        """Return None: the protocol asks once."""
        return None

    def read(self, ask: Ask, replies: Sequence[Reply]) -> Verdict:
        """Return the preference from the log probabilities of the first token, or from the text."""
        reply = replies[-1]
        chance = self._chance(reply)
        if chance is None:
            outcome = Outcome.REFUSED if reply.is_refusal else Outcome.UNPARSABLE
            return Verdict(item_id=ask.item_id, order=ask.order, turn=ask.turn, outcome=outcome)
        return Verdict(
            item_id=ask.item_id,
            order=ask.order,
            turn=ask.turn,
            outcome=Outcome.OK,
            verdict=FIRST if chance >= 0.5 else SECOND,
            value=preference_of(chance, switched=bool(ask.order)),
        )

    def summarise(
        self, items: Sequence[Item], answers: Mapping[str, Sequence[str]], verdicts: Sequence[Verdict]
    ) -> Summary:
        """Return win_rate and lc_win_rate, or lc_minimal_win_rate without difficulties, and counts."""
        values = _values(items, verdicts)
        outcomes = [_outcome(item.item_id, values.get(item.item_id)) for item in items]
        answered = [item for item in items if item.item_id in answers]
        name = "lc_minimal_win_rate" if self.difficulties is None else "lc_win_rate"
        metrics = {
            **win_rates([value for value in values.values() if value is not None]),
            **mean_interval("win_rate", outcomes, scale=100),
            **counts(items, answers, verdicts, delimiters=DELIMITERS["AlpacaEval2"]),
        }
        if answered:
            metrics["avg_length"] = _mean_length(answered, answers)
        details: dict[str, Any] = {"mode": self.judge.mode, "protocol": self.judge.protocol, "length_control": None}
        judged = self._judged(answered, answers, values)
        if (controlled := self._controlled(judged)) is not None:
            metrics[name] = controlled.win_rate
            regulariser = None if self.difficulties is None else self.difficulties.regulariser
            metrics |= interval(name, 100 * refit_of(judged, regulariser).resampled(seed=SEED, resamples=RESAMPLES))
            form = "LC-minimal" if self.difficulties is None else "LC"
            features, rows = rows_by_item(judged, regulariser)
            valid = {
                item.item_id: list(row)
                for item, row, outcome in zip(answered, features, judged.outcome, strict=True)
                if math.isfinite(outcome)
            }
            details["length_control"] = {
                **details_of(form, name, valid, rows),
                "coefficients": list(controlled.coefficients),
                "C": controlled.strength,
            }
        return Summary(metrics=metrics, outcomes=outcomes, details=details)

    def native_files(
        self,
        items: Sequence[Item],
        answers: Mapping[str, Sequence[str]],
        transcript: Transcript,
    ) -> Mapping[str, str]:
        """Return annotations.json and leaderboard.csv."""
        values = _values(items, transcript.verdicts)
        answered = [item for item in items if item.item_id in answers]
        rates = win_rates([value for value in values.values() if value is not None])
        if answered:
            rates["avg_length"] = _mean_length(answered, answers)
        # Only the full form goes by the name of the original's column.
        controlled = None if self.difficulties is None else self._controlled(self._judged(answered, answers, values))
        return {
            "annotations.json": annotations_file(answered, answers, values, transcript, names=self.baseline_names),
            "leaderboard.csv": leaderboard_file(transcript.system, rates, controlled),
        }

    def _is_switched(self, item: Item) -> bool:
        return is_switched(question_of(item), seed=self.order_seed)

    def _chance(self, reply: Reply) -> float | None:
        if self.judge.protocol != "Text" and reply.top_logprobs:
            return first_chance(reply.top_logprobs, mode=self.judge.mode)
        if self.judge.protocol == "Logprobs":
            return None
        return chance_of_text(reply.text if self.judge.mode == "Compat" else without_thoughts(reply.text))

    def _controlled(self, judged: Judged) -> LengthControl | None:
        if not can_control(judged):
            return None
        return length_control(judged, None if self.difficulties is None else self.difficulties.regulariser)

    def _judged(
        self, items: Sequence[Item], answers: Mapping[str, Sequence[str]], values: Mapping[str, float | None]
    ) -> Judged:
        preferences = [values.get(item.item_id) for item in items]
        return Judged(
            outcome=np.array([math.nan if value is None else value - 1 for value in preferences], dtype=np.float64),
            delta=np.array([float(len(baseline_of(item)) - len(answers[item.item_id][0])) for item in items]),
            difficulty=None if self.difficulties is None else self._difficulty(items, self.difficulties),
        )

    def _difficulty(self, items: Sequence[Item], known: Difficulties) -> Any:
        places = range(len(items)) if self.positional else [item.index for item in items]
        missing = next((place for place in places if place not in known.by_index), None)
        if missing is not None:
            raise DataError(
                f"the regulariser has no instruction_difficulty for index {missing}, only for {len(known.by_index)}",
                code="RegulariserMismatch",
                hint="Use the df_gamed.csv of this data set, or remove it from the bundle to report LC-minimal.",
            )
        return np.array([known.by_index[place] for place in places], dtype=np.float64)


def _values(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    """Return item id -> preference in the order of the items; None without a verdict."""
    read = {verdict.item_id: verdict.value if verdict.outcome is Outcome.OK else None for verdict in verdicts}
    return {item.item_id: read[item.item_id] for item in items if item.item_id in read}


def _outcome(item_id: str, value: float | None) -> ItemOutcome:
    if value is None:
        return ItemOutcome(item_id=item_id, value=None, weight=1.0, valid=False)
    return ItemOutcome(item_id=item_id, value=value - 1, weight=1.0, valid=True)


def _mean_length(items: Sequence[Item], answers: Mapping[str, Sequence[str]]) -> float:
    return float(np.mean([len(answers[item.item_id][0]) for item in items]))
