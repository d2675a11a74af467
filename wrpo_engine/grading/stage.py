"""The grade stage: one reward of every answer of one system to one benchmark, in parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from wrpo_engine.bundles.answers import read_answers
from wrpo_engine.bundles.consistency import KEY, Key, answer_name, check_answers, was_skipped
from wrpo_engine.bundles.items import BenchItem, read_items
from wrpo_engine.contract.evaluation import GradeParams
from wrpo_engine.scoring import stage as scoring
from wrpo_engine.scoring.load import model_field
from wrpo_engine.scoring.rewards import OnProgress, Scorer
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.text.conversations import Prompt, conversation


def run(ctx: StageContext) -> StageResult:
    """Score the pending parts of this shard, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, GradeParams)
    items = read_items(ctx)
    answers = read_answers(ctx.input(params.answers))
    check_answers(items, answers, role=params.answers)
    graded = answers.filter(~was_skipped())

    def make_score() -> scoring.ScoreRows:
        prompts = prompts_of(items, answers)
        return lambda scorer, rows, on_progress: grade_rows(scorer, rows, prompts, on_progress)

    def measure(parts: Iterable[pl.DataFrame]) -> dict[str, float]:
        return scoring.measure(parts, field=model_field(ctx)) | {"skipped": float(answers.height - graded.height)}

    return scoring.score_in_parts(ctx, params, graded, make_score, measure=measure)


def prompts_of(items: Sequence[BenchItem], answers: pl.DataFrame) -> dict[Key, Prompt]:
    """Return the prompt of each answer: the conversation so far, with the system's own earlier answers."""
    known = {item.item_id: item for item in items}
    texts: dict[Key, str] = {(row[0], row[1], row[2]): row[3] for row in answers.select(*KEY, "text").iter_rows()}
    return {key: _history(known[key[0]], key, texts) for key in texts}


def _history(item: BenchItem, key: Key, texts: Mapping[Key, str]) -> Prompt:
    item_id, sample, turn = key
    messages = list(item.messages)
    for earlier in range(turn):
        answer = texts[item_id, sample, earlier]
        messages += [{"role": "user", "content": item.turns[earlier]}, {"role": "assistant", "content": answer}]
    return conversation([*messages, {"role": "user", "content": item.turns[turn]}])


def grade_rows(
    scorer: Scorer, rows: pl.DataFrame, prompts: Mapping[Key, Prompt], on_progress: OnProgress | None = None
) -> pl.DataFrame:
    """Score rows of answers; the result has them in the same order, with the columns of `records.GRADES` and more."""
    keys: list[Key] = list(rows.select(*KEY).iter_rows())
    pairs = [(prompts[key], text) for key, text in zip(keys, rows["text"], strict=True)]
    rewards = scorer.rewards(pairs, [answer_name(*key) for key in keys], on_progress)
    return scoring.with_rewards(rows.select("item_id", "turn", "sample_index"), rewards, scorer.objectives)
