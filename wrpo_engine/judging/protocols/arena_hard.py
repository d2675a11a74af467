"""Arena-Hard v0.1 and v2.0: two games a question against the baseline, with the places exchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wrpo_engine.bundles.templates import (
    ARENA_CONTINUE,
    ARENA_NEW_FIELDS,
    ARENA_OLD_FIELDS,
    ARENA_SYSTEM,
    ARENA_USER,
    DELIMITERS,
    check_templates,
)
from wrpo_engine.comparison.length_control import LengthControl, details_of
from wrpo_engine.contract.benchmarks import JudgeFields, Protocol
from wrpo_engine.judging.protocol import Ask, Item, ItemOutcome, Outcome, Reply, Summary, Transcript, Verdict
from wrpo_engine.judging.protocols.arena_files import judgments
from wrpo_engine.judging.protocols.arena_verdicts import (
    Game,
    contradict,
    game_of,
    label_2024,
    label_2025,
    prefers_first,
    weighted_score,
)
from wrpo_engine.judging.protocols.counting import by_item, counts
from wrpo_engine.judging.protocols.intervals import RESAMPLES, SEED, interval, mean_interval
from wrpo_engine.judging.protocols.prompts import baseline_of, chat, fill, question_of, without_thoughts
from wrpo_engine.judging.protocols.style import StyledBattle, density_style, style_control, style_fit, style_of

_CONTINUE = "Continue your judgment, and end it with the label of your final verdict."
_MAX_TOKENS = 4096
_KINDS: Mapping[str, Protocol] = {"v0.1": "ArenaHard", "v2.0": "ArenaHardV2"}
_LEAST_BATTLES = 2
_LEAST_QUESTIONS = 10
"""Fewer do not determine the five coefficients of v2.0's style control."""
LEADERBOARD_SCORE = "sc2025_score"
"""Metric of v2.0: the style-controlled score of its leaderboard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaHard:
    """The protocol with one judge's settings."""

    judge: JudgeFields
    version: Literal["v0.1", "v2.0"]
    templates: Mapping[str, str]
    baseline_names: Mapping[str, str]
    """Item id -> the model that gave the baseline's answer, for native files."""
    length_of: Callable[[str], int] = len
    """Length of an answer for the style control."""
    length_unit: str = "characters"

    def __post_init__(self) -> None:
        check_templates(_KINDS[self.version], self.templates)

    @property
    def rounds(self) -> int:
        """Two for v0.1, which asks again for a missing verdict; one for v2.0."""
        return 2 if self.version == "v0.1" else 1

    def asks(self, item: Item, answer: Sequence[str]) -> list[Ask]:
        """Return the two games: the baseline's answer first, then the model's."""
        baseline = baseline_of(item)
        return [self._ask(item, 0, baseline, answer[0]), self._ask(item, 1, answer[0], baseline)]

    def settled(self, item: Item, answer: Sequence[str]) -> list[Verdict]:  # noqa: ARG002
        """Return nothing: equal answers are judged, too."""
        return []

    def follow_up(self, ask: Ask, replies: Sequence[Reply]) -> Ask | None:
        """Return the conversation so far with a request for the verdict if it is missing."""
        if len(replies) >= self.rounds or not self._lacks_verdict(replies):
            return None
        answered = {"role": "assistant", "content": replies[-1].text}
        request = {"role": "user", "content": self.templates.get(ARENA_CONTINUE, _CONTINUE)}
        return Ask(
            item_id=ask.item_id,
            order=ask.order,
            turn=ask.turn,
            messages=(*ask.messages, answered, request),
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            prompt_name=ask.prompt_name,
        )

    def read(self, ask: Ask, replies: Sequence[Reply]) -> Verdict:
        """Return the game's result for the model, from all replies together."""
        label = self._label(replies)
        if label is None:
            outcome = Outcome.REFUSED if replies[-1].is_refusal else Outcome.UNPARSABLE
            return Verdict(item_id=ask.item_id, order=ask.order, turn=ask.turn, outcome=outcome)
        game = game_of(label, ask.order)
        return Verdict(
            item_id=ask.item_id,
            order=ask.order,
            turn=ask.turn,
            outcome=Outcome.OK,
            verdict=label,
            value=game.score,
            weight=float(game.weight),
        )

    def summarise(
        self, items: Sequence[Item], answers: Mapping[str, Sequence[str]], verdicts: Sequence[Verdict]
    ) -> Summary:
        """Return the scores in per cent, also style-controlled, the unweighted mean, ties, position bias and counts."""
        grouped = by_item(verdicts)
        games = {item.item_id: self._games(grouped.get(item.item_id, [])) for item in items}
        outcomes = [_outcome(item_id, list(found.values())) for item_id, found in games.items()]
        scores = self._scores([found for found in games.values() if found])
        controlled = self._style_controlled(items, answers, games)
        if self.version == "v2.0":
            controlled |= self._leaderboard_scores(items, answers, outcomes)
        metrics = {
            **scores,
            **mean_interval("score", outcomes, scale=100),
            **controlled,
            **self._categories(items, games),
            **counts(items, answers, verdicts, delimiters=DELIMITERS[_KINDS[self.version]]),
        }
        details: dict[str, Any] = {
            "mode": self.judge.mode,
            "parsing": "2024" if self._is_2024 else "2025",
            "style_length": self.length_unit,
        }
        if LEADERBOARD_SCORE in controlled:
            details["length_control"] = details_of("SC", LEADERBOARD_SCORE, {})
        return Summary(metrics=metrics, outcomes=outcomes, details=details)

    def native_files(
        self,
        items: Sequence[Item],
        answers: Mapping[str, Sequence[str]],  # noqa: ARG002
        transcript: Transcript,
    ) -> Mapping[str, str]:
        """Return model_judgment/JUDGE/SYSTEM.jsonl in the form of the version."""
        return judgments(items, transcript, version=self.version, baselines=self.baseline_names)

    @property
    def _is_2024(self) -> bool:
        return self.version == "v0.1" and self.judge.mode == "Compat"

    def _ask(self, item: Item, order: int, first: str, second: str) -> Ask:
        question = question_of(item)
        values = dict(zip((*ARENA_OLD_FIELDS, *ARENA_NEW_FIELDS), (question, first, second) * 2, strict=True))
        system = self.templates.get(f"{ARENA_SYSTEM}/{item.category}", self.templates.get(ARENA_SYSTEM, ""))
        return Ask(
            item_id=item.item_id,
            order=order,
            turn=0,
            messages=chat(system, fill(self.templates[ARENA_USER], values, name=ARENA_USER)),
            max_tokens=self.judge.max_tokens or _MAX_TOKENS,
            temperature=self.judge.temperature or 0.0,
            prompt_name=ARENA_USER,
        )

    def _text(self, replies: Sequence[Reply]) -> str:
        compat = self.judge.mode == "Compat"
        return "\n".join(reply.text if compat else without_thoughts(reply.text) for reply in replies)

    def _label(self, replies: Sequence[Reply]) -> str | None:
        text = self._text(replies)
        return label_2024(text)[0] if self._is_2024 else label_2025(text)

    def _lacks_verdict(self, replies: Sequence[Reply]) -> bool:
        """Return whether another attempt is due: by the 2024 rule only if nothing looks like a label."""
        text = self._text(replies)
        return label_2024(text)[1] if self._is_2024 else label_2025(text) is None

    def _games(self, verdicts: Sequence[Verdict]) -> dict[int, Game]:
        """Return the valid games by order; by v2.0 a question counts only with both."""
        valid = [entry for entry in verdicts if entry.outcome is Outcome.OK]
        games = {entry.order: game_of(entry.verdict, entry.order) for entry in valid}
        return games if self.version == "v0.1" or len(games) == 2 else {}

    @staticmethod
    def _scores(questions: Sequence[Mapping[int, Game]]) -> dict[str, float]:
        games = [(order, game) for found in questions for order, game in found.items()]
        score = weighted_score([game for _, game in games])
        if score is None:
            return {}
        both = [found for found in questions if len(found) == 2]
        decided = [(order, game) for order, game in games if game.score != 0.5]
        metrics = {
            "score": 100 * score,
            "score_unweighted": 100 * sum(game.score for _, game in games) / len(games),
            "tie_share": 1 - len(decided) / len(games),
            "games": float(len(games)),
        }
        if both:
            metrics["contradiction_share"] = sum(contradict(found) for found in both) / len(both)
        if decided:
            metrics["first_position_share"] = sum(prefers_first(*entry) for entry in decided) / len(decided)
        return metrics

    @staticmethod
    def _categories(items: Sequence[Item], games: Mapping[str, Mapping[int, Game]]) -> dict[str, float]:
        """Return the score of each category, if there are several."""
        categories = sorted({item.category for item in items})
        scores = {
            f"score_{category}": weighted_score(
                [game for item in items if item.category == category for game in games[item.item_id].values()]
            )
            for category in categories
            if category and len(categories) > 1
        }
        return {name: 100 * score for name, score in scores.items() if score is not None}

    def _style_controlled(
        self,
        items: Sequence[Item],
        answers: Mapping[str, Sequence[str]],
        games: Mapping[str, Mapping[int, Game]],
    ) -> dict[str, float]:
        """Return the score at equal style; nothing if all battles end alike, where there is nothing to fit."""
        battles = []
        for item in items:
            for game in games[item.item_id].values():
                battle = StyledBattle(
                    model="model",
                    outcome=game.score,
                    model_style=self._style(answers[item.item_id][0]),
                    baseline_style=self._style(baseline_of(item)),
                )
                battles += [battle] * game.weight
        if len(battles) < _LEAST_BATTLES or {battle.outcome for battle in battles} in ({0.0}, {1.0}):
            return {}
        return {"sc_score": style_control(battles).equal_style_win_rate("model")}

    def _leaderboard_scores(
        self, items: Sequence[Item], answers: Mapping[str, Sequence[str]], outcomes: Sequence[ItemOutcome]
    ) -> dict[str, float]:
        """Return the score of v2.0's leaderboard at equal style, with its interval, and that of each category."""
        judged = [(item, found) for item, found in zip(items, outcomes, strict=True) if found.valid]
        by_category: dict[str, list[tuple[Item, ItemOutcome]]] = {}
        for entry in judged:
            by_category.setdefault(entry[0].category, []).append(entry)
        metrics: dict[str, float] = {}
        if (fit := self._fit(judged, answers)) is not None:
            metrics[LEADERBOARD_SCORE] = 100 * fit.score()
            metrics |= interval(LEADERBOARD_SCORE, 100 * fit.resampled(seed=SEED, resamples=RESAMPLES))
        for category, found in sorted(by_category.items()) if len(by_category) > 1 else ():
            if category and (fit := self._fit(found, answers)) is not None:
                metrics[f"{LEADERBOARD_SCORE}_{category}"] = 100 * fit.score()
        return metrics

    def _fit(
        self, judged: Sequence[tuple[Item, ItemOutcome]], answers: Mapping[str, Sequence[str]]
    ) -> LengthControl | None:
        values = np.array([found.value for _, found in judged], dtype=np.float64)
        if len(values) < _LEAST_QUESTIONS or set(values.tolist()) in ({0.0}, {1.0}):
            return None
        styles = [
            density_style(self._style(answers[item.item_id][0]), self._style(baseline_of(item))) for item, _ in judged
        ]
        return style_fit(np.array(styles), values, np.array([found.weight for _, found in judged]))

    def _style(self, text: str) -> tuple[float, float, float, float]:
        return style_of(text, self.length_of(text))


def _outcome(item_id: str, games: Sequence[Game]) -> ItemOutcome:
    return ItemOutcome(
        item_id=item_id,
        value=weighted_score(games),
        weight=float(sum(game.weight for game in games)),
        valid=bool(games),
    )
