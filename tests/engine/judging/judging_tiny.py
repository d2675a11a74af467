"""The smallest benchmark's protocol that has all that the judge stage must handle: m or M, in two orders."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wrpo_engine.contract.benchmarks import JudgeFields
from wrpo_engine.judging.protocol import Ask, Item, ItemOutcome, Outcome, Reply, Summary, Transcript, Verdict


@dataclass(frozen=True)
class TinyProtocol:
    """Each answer is compared with the baseline twice; equal texts are settled; one follow-up."""

    judge: JudgeFields
    rounds: int = 2

    def asks(self, item: Item, answer: Sequence[str]) -> list[Ask]:
        if answer[0] == item.baseline[0]:
            return []
        pair = (item.baseline[0], answer[0])
        return [
            Ask(
                item_id=item.item_id,
                order=order,
                turn=0,
                messages=({"role": "user", "content": f"{item.turns[0]}\nm: {first}\nM: {second}"},),
                max_tokens=self.judge.max_tokens or 8,
                temperature=0.0,
                top_logprobs=None if self.judge.protocol == "Text" else 5,
            )
            for order, (first, second) in enumerate((pair, pair[::-1]))
        ]

    def settled(self, item: Item, answer: Sequence[str]) -> list[Verdict]:
        if answer[0] != item.baseline[0]:
            return []
        return [
            Verdict(item_id=item.item_id, order=order, turn=0, outcome=Outcome.OK, verdict="=", value=0.5)
            for order in (0, 1)
        ]

    def follow_up(self, ask: Ask, replies: Sequence[Reply]) -> Ask | None:
        if self.read(ask, replies).outcome is not Outcome.UNPARSABLE:
            return None
        again = [*ask.messages, {"role": "assistant", "content": replies[-1].text}, {"role": "user", "content": "m?"}]
        return replace(ask, messages=tuple(again))

    def read(self, ask: Ask, replies: Sequence[Reply]) -> Verdict:
        reply = replies[-1]
        share = self._share(reply)
        named: dict[str, Any] = {"item_id": ask.item_id, "order": ask.order, "turn": ask.turn}
        if reply.is_refusal:
            return Verdict(outcome=Outcome.REFUSED, **named)
        if share is None:
            return Verdict(outcome=Outcome.UNPARSABLE, **named)
        value = share if ask.order else 1 - share
        return Verdict(outcome=Outcome.OK, verdict=reply.text.strip(), value=value, **named)

    def _share(self, reply: Reply) -> float | None:
        if self.judge.protocol == "Text":
            return {"m": 1.0, "M": 0.0}.get(reply.text.strip())
        weights = [math.exp((reply.top_logprobs or {}).get(token, -math.inf)) for token in "mM"]
        return weights[0] / sum(weights) if sum(weights) else None

    def summarise(
        self, items: Sequence[Item], answers: Mapping[str, Sequence[str]], verdicts: Sequence[Verdict]
    ) -> Summary:
        values = {
            item.item_id: [each.value for each in verdicts if each.item_id == item.item_id and each.value is not None]
            for item in items
        }
        outcomes = [
            ItemOutcome(item_id=name, value=statistics.mean(found) if found else None, weight=1.0, valid=bool(found))
            for name, found in values.items()
        ]
        known = [each.value for each in outcomes if each.value is not None]
        metrics = {"win_rate": 100 * statistics.mean(known) if known else math.nan}
        return Summary(metrics=metrics, outcomes=outcomes, details={"protocol": self.judge.protocol})

    def native_files(
        self,
        items: Sequence[Item],
        answers: Mapping[str, Sequence[str]],
        transcript: Transcript,
    ) -> Mapping[str, str]:
        rows = [
            {"item": each.item_id, "order": each.order, "value": each.value}
            | {"system": transcript.system, "judge": transcript.judge}
            for each in transcript.verdicts
        ]
        texts = [
            {"item": key[0], "texts": [reply.text for reply in found]} for key, found in transcript.replies.items()
        ]
        return {"annotations.json": json.dumps(rows), "texts.json": json.dumps(texts)}


def tiny_protocol_of(kind: str, judge: JudgeFields, *_: Any, **__: Any) -> TinyProtocol:
    return TinyProtocol(judge)
