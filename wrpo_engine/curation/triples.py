"""Chooses (y_ws, y_wt, y_l) for every prompt; every prompt left out is counted by reason. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Dropped(StrEnum):
    """Why a prompt gives no triple."""

    NO_SOURCE_RESPONSE = "no_source_response"
    NO_TARGET_RESPONSE = "no_target_response"
    TARGET_IDENTICAL = "target_identical"
    TARGET_TIE = "target_tie"
    SCORE_MARGIN = "score_margin"
    SOURCE_NOT_BETTER = "source_not_better"


@dataclass(frozen=True)
class Candidate:
    """An answer that may be chosen."""

    source: str
    sample_index: int
    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a triple must fulfil (arXiv:2412.03187 leaves it open)."""

    score_margin: float = 0.0
    require_source_better: bool = False
    on_tie: Literal["Drop", "KeepFirst"] = "Drop"
    needs_source: bool = True


@dataclass(frozen=True, kw_only=True)
class Triple:
    """One training row; `source_chosen` is None for objectives without a source response."""

    prompt_id: str
    source_chosen: Candidate | None
    target_chosen: Candidate
    rejected: Candidate


@dataclass(kw_only=True)
class Curated:
    """Triples in prompt order, and what became of the other prompts."""

    triples: list[Triple] = field(default_factory=list)
    dropped: Counter[Dropped] = field(default_factory=Counter)
    num_source_not_better: int = 0
    """Prompts whose y_ws does not exceed y_wt in score, whether or not that drops them."""


def choose_triple(
    prompt_id: str, source_best: Candidate | None, target: Sequence[Candidate], rules: Rules
) -> Triple | Dropped:
    """Choose y_wt and y_l among the target's answers, or say why the prompt gives no triple.

    y_wt has the highest score, y_l the lowest among the answers with another text; the lower sample index breaks
    ties. An answer against its own text teaches nothing, so identical answers never make a pair.
    """
    if rules.needs_source and source_best is None:
        return Dropped.NO_SOURCE_RESPONSE
    if not target:
        return Dropped.NO_TARGET_RESPONSE
    chosen = min(target, key=lambda answer: (-answer.score, answer.sample_index))
    others = [answer for answer in target if answer.text != chosen.text]
    if not others:
        return Dropped.TARGET_IDENTICAL
    rejected = min(others, key=lambda answer: (answer.score, answer.sample_index))
    if rejected.score == chosen.score and rules.on_tie == "Drop":
        return Dropped.TARGET_TIE
    if chosen.score - rejected.score < rules.score_margin:
        return Dropped.SCORE_MARGIN
    if not rules.needs_source or source_best is None:
        return Triple(prompt_id=prompt_id, source_chosen=None, target_chosen=chosen, rejected=rejected)
    if rules.require_source_better and source_best.score <= chosen.score:
        return Dropped.SOURCE_NOT_BETTER
    return Triple(prompt_id=prompt_id, source_chosen=source_best, target_chosen=chosen, rejected=rejected)


def curate(
    prompt_ids: Sequence[str],
    source_best: Mapping[str, Candidate],
    target: Mapping[str, Sequence[Candidate]],
    rules: Rules,
) -> Curated:
    """Choose a triple for every prompt, in order. Every prompt is either a triple or counted in `dropped`."""
    curated = Curated()
    for prompt_id in prompt_ids:
        source, answers = source_best.get(prompt_id), target.get(prompt_id, ())
        if rules.needs_source and source and answers and source.score <= max(answer.score for answer in answers):
            curated.num_source_not_better += 1
        match choose_triple(prompt_id, source, answers, rules):
            case Dropped() as reason:
                curated.dropped[reason] += 1
            case triple:
                curated.triples.append(triple)
    return curated
