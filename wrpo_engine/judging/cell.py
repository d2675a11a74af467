"""One cell: a system's answers to a benchmark and the questions that a judge is asked about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wrpo_engine.artifacts.checks import address
from wrpo_engine.bundles.answers import read_answers, texts_by_item
from wrpo_engine.bundles.items import (
    BenchItem,
    read_baseline,
    read_baseline_names,
    read_items,
    read_references,
    read_regulariser,
    read_templates,
)
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.evaluation import SEPARATOR, BenchmarkJudge, JudgeParams
from wrpo_engine.errors import DataError
from wrpo_engine.judging.protocol import Ask, BenchmarkProtocol, Item, Verdict
from wrpo_engine.judging.protocols import Baseline, protocol_of
from wrpo_engine.stage import StageContext

QUESTIONS_PER_PART = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question, with what makes it unique in its artifact."""

    key: str
    """SHA-256 of the artifact's hash, item, order and turn."""
    ask: Ask

    @property
    def name(self) -> tuple[str, int, int]:
        """Item, order and turn."""
        return self.ask.item_id, self.ask.order, self.ask.turn

    @property
    def where(self) -> str:
        """Name of the question in messages."""
        return f"item {self.ask.item_id}, order {self.ask.order}, turn {self.ask.turn}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a judge stage reads, and the questions that follow from it."""

    items: Sequence[Item]
    answers: Mapping[str, Sequence[str]]
    protocol: BenchmarkProtocol
    questions: Sequence[Question]
    """Sorted by key: each part is a random sample of the items."""
    settled: Sequence[Verdict]
    """Verdicts that need no question."""

    @property
    def parts(self) -> list[Sequence[Question]]:
        """The questions of each part; one empty part if nothing is asked."""
        starts = range(0, max(1, len(self.questions)), QUESTIONS_PER_PART)
        return [self.questions[start : start + QUESTIONS_PER_PART] for start in starts]


def digest_of_ask(ask: Ask) -> str:
    """Return the SHA-256 of all that a request takes from the question."""
    content = [[dict(each) for each in ask.messages], ask.max_tokens, ask.temperature, ask.top_logprobs]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Items and answers, before the judge's settings make questions of them."""

    items: Sequence[Item]
    answers: Mapping[str, Sequence[str]]
    templates: Mapping[str, str]
    baseline: Baseline


def load_inputs(ctx: StageContext, params: JudgeParams) -> Inputs:
    """Read items and answers; DataError if they do not fit together."""
    answers = texts_by_item(read_answers(ctx.input(params.answers)))
    found = bundle_inputs(ctx, read_items(ctx), answers)
    if (own := params.baseline) is not None:
        texts, system = texts_by_item(read_answers(ctx.input(own))), _system(own)
        found = replace(
            found,
            items=[replace(item, baseline=texts.get(item.item_id, ())) for item in found.items],
            baseline=Baseline({item.item_id: system for item in found.items}),
        )
    _check(found.items, answers, ctx, params)
    return found


def bundle_inputs(ctx: StageContext, items: Sequence[BenchItem], answers: Mapping[str, Sequence[str]]) -> Inputs:
    """Return answers to items of the bundle, to be compared with those of the bundle's baseline."""
    references, baseline = read_references(ctx), read_baseline(ctx)
    return Inputs(
        items=[_item(each, references, baseline) for each in items],
        answers=answers,
        templates=read_templates(ctx),
        baseline=Baseline(read_baseline_names(ctx), read_regulariser(ctx)),
    )


def _system(role: str) -> str:
    """Return the system of a role, e.g. moa of mixture/moa--mt-bench."""
    return role.partition("/")[2].partition(SEPARATOR)[0]


def make_cell(inputs: Inputs, params: BenchmarkJudge, output: ArtifactRef) -> Cell:
    """Return the cell of one artifact. The protocol of `params` is decided: Logprobs or Text."""
    protocol = protocol_of(
        params.benchmark_protocol,
        params,
        templates=inputs.templates,
        baseline=inputs.baseline,
        order_seed=params.order_seed,
    )
    pairs = [(item, inputs.answers[item.item_id]) for item in inputs.items]
    asks = [ask for item, answer in pairs for ask in protocol.asks(item, answer)]
    return Cell(
        items=inputs.items,
        answers=inputs.answers,
        protocol=protocol,
        questions=sorted(_questions(output, asks), key=lambda question: question.key),
        settled=[verdict for item, answer in pairs for verdict in protocol.settled(item, answer)],
    )


def _questions(output: ArtifactRef, asks: Sequence[Ask]) -> Iterator[Question]:
    seen: set[tuple[str, int, int]] = set()
    for ask in asks:
        name = [output.hash, ask.item_id, ask.order, ask.turn]
        question = Question(key=hashlib.sha256(json.dumps(name).encode()).hexdigest(), ask=ask)
        assert question.name not in seen, question.where
        seen.add(question.name)
        yield question


def _item(item: BenchItem, references: Mapping[str, tuple[str, ...]], baseline: Mapping[str, tuple[str, ...]]) -> Item:
    return Item(
        item_id=item.item_id,
        index=item.index,
        category=item.category,
        turns=item.turns,
        messages=item.messages,
        reference=references.get(item.item_id, ()),
        baseline=baseline.get(item.item_id, ()),
    )


def _check(items: Sequence[Item], answers: Mapping[str, Sequence[str]], ctx: StageContext, params: JudgeParams) -> None:
    place = f"{address(ctx.config.inputs[params.answers])} ({params.answers})"
    if not items:
        raise DataError("the benchmark has no items", code="BenchmarkEmpty", hint="Check the bundle and its limit.")
    for item in items:
        given = len(answers.get(item.item_id, ()))
        if given != len(item.turns):
            raise DataError(
                f"{place} has {given} answers to item {item.item_id}, which has {len(item.turns)} turns",
                code="InputsDisagree",
                hint="Judge answers together with the benchmark that they belong to.",
            )
    if unknown := sorted(answers.keys() - {item.item_id for item in items}):
        raise DataError(
            f"{place} answers item {unknown[0]}, which the benchmark does not have ({len(unknown)} such items)",
            code="InputsDisagree",
            hint="Judge answers together with the benchmark that they belong to.",
        )
