"""MT-Bench: a judge rates each turn of a conversation from 1 to 10."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from wrpo_engine.bundles.names import file_name, json_line, question_id
from wrpo_engine.bundles.templates import DELIMITERS, MT_FIELDS, MT_NEEDS_REFERENCE, check_templates
from wrpo_engine.contract.benchmarks import JudgeFields
from wrpo_engine.errors import DataError
from wrpo_engine.judging.protocol import Ask, Item, ItemOutcome, Outcome, Reply, Summary, Transcript, Verdict
from wrpo_engine.judging.protocols.counting import by_item, counts
from wrpo_engine.judging.protocols.intervals import mean_interval
from wrpo_engine.judging.protocols.prompts import chat, fill, without_thoughts

_MAX_TOKENS = 2048
_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")
_STRICT_BACKUP = re.compile(r"rating\W*?\[(\d+\.?\d*)\]", re.IGNORECASE)


def rating_of(text: str, *, mode: Literal["Compat", "Strict"]) -> float | None:
    """Return the rating in a judge's reply; None if there is none.

    Compat: the first [[number]], else the first [number], any number. Strict: the last [[number]], else the last
    [number] after the word rating, from 1 to 10; a rating outside the scale is none.
    """
    if mode == "Compat":
        match = _RATING.search(text) or _BACKUP.search(text)
        return None if match is None else _number(match.group(1))
    found = _RATING.findall(text) or _STRICT_BACKUP.findall(text)
    rating = _number(found[-1]) if found else None
    return rating if rating is not None and 1 <= rating <= 10 else None


def _number(text: str) -> float | None:
    """Return a number as Python reads it, which refuses 08 and digits of other scripts."""
    try:
        value = float(ast.literal_eval(text))
    except (SyntaxError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def prompt_name(category: str, turn: int) -> str:
    """Return the name of the judge prompt of a category and a turn, counted from 0."""
    math_part = "-math" if category in MT_NEEDS_REFERENCE else ""
    return f"single{math_part}-v1{'-multi-turn' if turn else ''}"


def scores_of(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return the means of the valid ratings: of each turn, and of all together, which is not the mean of the turns."""
    valid = [verdict for verdict in verdicts if verdict.outcome is Outcome.OK and verdict.value is not None]
    groups = {
        "overall": valid,
        "first_turn": [verdict for verdict in valid if verdict.turn == 0],
        "second_turn": [verdict for verdict in valid if verdict.turn == 1],
    }
    return {name: _mean([entry.value or 0.0 for entry in group]) for name, group in groups.items() if group}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class MTBench:
    """The protocol with one judge's settings."""

    judge: JudgeFields
    templates: Mapping[str, str]

    def __post_init__(self) -> None:
        check_templates("MTBench", self.templates)

    @property
    def rounds(self) -> int:
        """Two: a question whose reply holds no rating is asked once more."""
        return 2

    def asks(self, item: Item, answer: Sequence[str]) -> list[Ask]:
        """Return one question a turn."""
        return [self._ask(item, answer, turn) for turn in range(len(item.turns))]

    def settled(self, item: Item, answer: Sequence[str]) -> list[Verdict]:  # noqa: ARG002
        """Return nothing: every rating needs the judge."""
        return []

    def follow_up(self, ask: Ask, replies: Sequence[Reply]) -> Ask | None:
        """Return the same question if the reply holds no rating."""
        if len(replies) >= self.rounds or self.read(ask, replies).outcome is not Outcome.UNPARSABLE:
            return None
        return ask

    def read(self, ask: Ask, replies: Sequence[Reply]) -> Verdict:
        """Return the rating of the last reply."""
        reply = replies[-1]
        text = reply.text if self.judge.mode == "Compat" else without_thoughts(reply.text)
        rating = rating_of(text, mode=self.judge.mode)
        outcome = Outcome.OK if rating is not None else Outcome.UNPARSABLE
        if rating is None and reply.is_refusal:
            outcome = Outcome.REFUSED
        return Verdict(
            item_id=ask.item_id,
            order=ask.order,
            turn=ask.turn,
            outcome=outcome,
            verdict="" if rating is None else f"{rating:g}",
            value=rating,
        )

    def summarise(
        self, items: Sequence[Item], answers: Mapping[str, Sequence[str]], verdicts: Sequence[Verdict]
    ) -> Summary:
        """Return overall, first_turn and second_turn, the means of the categories, and counts."""
        grouped = by_item(verdicts)
        outcomes = [_outcome(item.item_id, grouped.get(item.item_id, [])) for item in items]
        scores = scores_of(verdicts)
        categories = {
            f"overall_{category}": scores_of(
                [entry for item in items if item.category == category for entry in grouped.get(item.item_id, [])]
            ).get("overall")
            for category in sorted({item.category for item in items if item.category})
        }
        metrics = {
            **scores,
            **{name: value for name, value in categories.items() if value is not None},
            **mean_interval("overall", outcomes),
            **counts(items, answers, verdicts, delimiters=DELIMITERS["MTBench"]),
        }
        return Summary(metrics=metrics, outcomes=outcomes, details={"mode": self.judge.mode})

    def native_files(
        self,
        items: Sequence[Item],
        answers: Mapping[str, Sequence[str]],  # noqa: ARG002
        transcript: Transcript,
    ) -> Mapping[str, str]:
        """Return FastChat's model_judgment/JUDGE_single.jsonl."""
        read = {(verdict.item_id, verdict.order, verdict.turn): verdict for verdict in transcript.verdicts}
        place = {item.item_id: item.index for item in items}
        rows = []
        for ask in sorted(transcript.asks, key=lambda entry: (entry.turn, place[entry.item_id])):
            key = (ask.item_id, ask.order, ask.turn)
            verdict = read.get(key)
            given = transcript.replies.get(key, ())
            value = None if verdict is None else verdict.value
            rows.append(
                json_line(
                    {
                        "question_id": question_id(ask.item_id),
                        "model": transcript.system,
                        "judge": [transcript.judge, ask.prompt_name],
                        "user_prompt": ask.messages[-1]["content"],
                        "judgment": given[-1].text if given else "",
                        "score": -1 if value is None else int(value) if value.is_integer() else value,
                        "turn": ask.turn + 1,
                        "tstamp": 0,
                    }
                )
            )
        return {f"model_judgment/{file_name(transcript.judge)}_single.jsonl": "".join(rows)}

    def _ask(self, item: Item, answer: Sequence[str], turn: int) -> Ask:
        name = prompt_name(item.category, turn)
        user = fill(self.templates[f"{name}/user"], _values(item, answer, turn, name), name=name)
        return Ask(
            item_id=item.item_id,
            order=0,
            turn=turn,
            messages=chat(self.templates[f"{name}/system"], user),
            max_tokens=self.judge.max_tokens or _MAX_TOKENS,
            temperature=self.judge.temperature or 0.0,
            prompt_name=name,
        )


def _values(item: Item, answer: Sequence[str], turn: int, name: str) -> dict[str, str]:
    if len(answer) <= turn:
        raise DataError(
            f"item {item.item_id} has {len(item.turns)} turns, but {len(answer)} answers",
            code="AnswerMissing",
            hint="Let the stage that answers the benchmark run again.",
        )
    values = {"question": item.turns[0], "answer": answer[0]}
    for position in range(turn + 1):
        values[f"question_{position + 1}"] = item.turns[position]
        values[f"answer_{position + 1}"] = answer[position]
    if "ref_answer_1" in MT_FIELDS[name]:
        if len(item.reference) <= turn:
            raise DataError(
                f"item {item.item_id} of category {item.category} has no reference answer to turn {turn + 1}",
                code="ReferenceMissing",
                hint="Choose another reference set, or add the answer to the bundle.",
            )
        values |= {f"ref_answer_{position + 1}": text for position, text in enumerate(item.reference)}
    return values


def _outcome(item_id: str, verdicts: Sequence[Verdict]) -> ItemOutcome:
    ratings = [entry.value for entry in verdicts if entry.outcome is Outcome.OK and entry.value is not None]
    if not ratings:
        return ItemOutcome(item_id=item_id, value=None, weight=0.0, valid=False)
    return ItemOutcome(item_id=item_id, value=_mean(ratings), weight=float(len(ratings)), valid=True)
