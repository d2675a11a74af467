"""The artifacts of all cells of an evaluation, each read once."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wrpo_engine.artifacts import Artifact
from wrpo_engine.bundles.items import BenchItem, read_items
from wrpo_engine.contract.evaluation import EvaluatedBenchmark, EvaluateParams, cell_name
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.evaluation.cells import (
    Answers,
    answers_of,
    graded,
    grades_of,
    reward_identity,
    reward_of,
    verdicts_of,
)
from wrpo_engine.evaluation.examples import examples_of
from wrpo_engine.evaluation.held_out import common_prompts, evaluation, scored_answers
from wrpo_engine.evaluation.tables import Judgements
from wrpo_engine.evaluation.win_rate import shares
from wrpo_engine.formats.columns import read_columns
from wrpo_engine.stage import StageContext
from wrpo_engine.text.conversations import prompt_of, prompt_text

log = logging.getLogger("wrpo_engine")

HELD_OUT = "HeldOutReward"
MAIN = "main"
"""Name of the experiment's own reward if it has one only."""
_IDS_SHOWN = 5


def weights_of(names: Sequence[str], given: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of the rewards that make the score, which add up to 1: those given, or else `main` alone."""
    weights = dict(given) or {MAIN if MAIN in names else names[0]: 1.0}
    total = sum(weights.values())
    valid = set(weights) <= set(names) and all(math.isfinite(value) and value >= 0 for value in weights.values())
    if not valid or total <= 0:
        raise ConfigError(
            "reward.weight",
            ", ".join(f"{name}: {value:g}" for name, value in weights.items()),
            f"each must be 0 or more, one above 0, and of one of the rewards {', '.join(names)}",
            "Correct reward.weight and reward.additional[].weight.",
        )
    return {name: weights[name] / total for name in names if name in weights}


class Reading:
    """Reads each artifact once."""

    def __init__(self, ctx: StageContext, params: EvaluateParams) -> None:
        self._ctx = ctx
        self._params = params
        self._labels = {system.name: system.label for system in params.systems}
        self._items = {benchmark.name: self._items_of(benchmark) for benchmark in params.benchmarks}
        self.answers: dict[tuple[str, str], Answers] = {
            (system.name, benchmark.name): answers_of(ctx.input(role), self._ids(benchmark), role)
            for benchmark in params.benchmarks
            for system in params.systems
            for role in [f"{system.answers}/{cell_name(system.name, benchmark.name)}"]
        }
        self._grades: dict[tuple[str, str, str], pl.Series] = {}
        self._columns: list[Judgements] | None = None

    def columns(self) -> list[Judgements]:
        """Return a column for each judge and reward of each benchmark, judges first."""
        if self._columns is None:
            self._columns = [
                column
                for benchmark in self._params.benchmarks
                for column in (
                    *(self._judge_column(benchmark, judge) for judge in benchmark.judges),
                    *(self._reward_column(benchmark, reward) for reward in benchmark.rewards),
                )
            ]
        return self._columns

    def examples(self) -> list[dict[str, Any]]:
        """Return the content of examples.json."""
        return [
            example
            for benchmark in self._params.benchmarks
            for example in examples_of(
                benchmark.name,
                self._items[benchmark.name],
                {system.name: self.answers[system.name, benchmark.name] for system in self._params.systems},
                [column for column in self.columns() if column.benchmark.name == benchmark.name],
            )
        ]

    def models(self) -> dict[str, Any]:
        """Return the model of each system that is one, by label."""
        found = {}
        for (system, _), answers in self.answers.items():
            if isinstance(model := answers.details.get("model"), Mapping):
                found[self._labels[system]] = dict(model)
        return found

    def held_out(self, benchmark: EvaluatedBenchmark) -> tuple[pl.DataFrame, dict[str, Any], dict[str, Any]]:
        """Return answers.parquet, evaluation.json and the manifest's details of the rewards."""
        params = self._params
        names = [*params.opponents, params.subject]
        weights = weights_of(benchmark.rewards, params.reward_weights)
        common, skipped = common_prompts(
            {self._labels[name]: self._scored(name, benchmark, list(weights)) for name in names}
        )
        if skipped:
            shown = ", ".join(skipped[:_IDS_SHOWN]) + (", ..." if len(skipped) > _IDS_SHOWN else "")
            log.warning(
                "left out, because they are too long for a model's context: %d prompts (%s)", len(skipped), shown
            )
        prompts = {
            item.item_id: prompt_text(prompt_of(item.turns[-1], item.messages)) for item in self._items[benchmark.name]
        }
        artifacts = [self._grade(params.subject, benchmark, reward) for reward in weights]
        identities = unique([reward_identity(artifact) for artifact in artifacts])
        frames = [
            scored_answers(
                label,
                rows.drop(_columns(weights)),
                prompts,
                {name: rows[column] for name, column in zip(identities, _columns(weights), strict=True)},
                list(weights.values()),
            )
            for label, rows in common.items()
        ]
        answers = pl.concat(frames)
        result = evaluation(answers, list(common), self._source_share(), len(skipped))
        rewards: dict[str, Any] = {"reward": reward_of(artifacts[0])}
        if len(artifacts) > 1:
            rewards["rewards"] = [
                {**reward_of(artifact), "weight": weight}
                for artifact, weight in zip(artifacts, weights.values(), strict=True)
            ]
        return answers, result, rewards

    def _scored(self, system: str, benchmark: EvaluatedBenchmark, rewards: Sequence[str]) -> pl.DataFrame:
        frame = self.answers[system, benchmark.name].frame
        return frame.with_columns(
            self._scores(system, benchmark, reward).alias(column)
            for reward, column in zip(rewards, _columns(rewards), strict=True)
        )

    def _items_of(self, benchmark: EvaluatedBenchmark) -> list[BenchItem]:
        """Read the items by a context that has this benchmark's bundle only."""
        inputs = self._ctx.config.inputs
        own = {role: ref for role, ref in inputs.items() if role in ("prompts", f"bench/{benchmark.name}")}
        if benchmark.kind == HELD_OUT:
            own.pop(f"bench/{benchmark.name}", None)
        elif f"bench/{benchmark.name}" not in own:
            self._ctx.input(f"bench/{benchmark.name}")
        config = self._ctx.config.model_copy(update={"inputs": own})
        items = read_items(dataclasses.replace(self._ctx, config=config))
        if not items:
            raise _without_items(benchmark)
        return items

    def _ids(self, benchmark: EvaluatedBenchmark) -> list[str]:
        return [item.item_id for item in self._items[benchmark.name]]

    def _judge_column(self, benchmark: EvaluatedBenchmark, judge: str) -> Judgements:
        roles = {system: f"verdicts/{cell_name(system, benchmark.name, judge)}" for system in self._labels}
        artifacts = {system: self._ctx.input(role) for system, role in roles.items()}
        return Judgements(
            benchmark=benchmark,
            judge=judge,
            is_reward=False,
            cells={
                system: verdicts_of(artifact, self._ids(benchmark), roles[system])
                for system, artifact in artifacts.items()
            },
            own=self._own(serves_reward(next(iter(artifacts.values()))) in self._training_rewards()),
        )

    def _reward_column(self, benchmark: EvaluatedBenchmark, reward: str) -> Judgements:
        cells = {
            system: graded(
                self.answers[system, benchmark.name],
                self._scores(system, benchmark, reward),
                reward_of(self._grade(system, benchmark, reward)),
            )
            for system in self._labels
        }
        own = reward_identity(self._grade(self._params.subject, benchmark, reward)) in self._training_rewards()
        return Judgements(benchmark=benchmark, judge=reward, is_reward=True, cells=cells, own=self._own(own))

    def _own(self, is_training_reward: bool) -> frozenset[str]:
        """Return the systems that a judge has trained or selected."""
        systems = self._params.systems if is_training_reward else ()
        return frozenset(system.name for system in systems if system.uses_reward)

    def _training_rewards(self) -> set[str]:
        """Return the identities of the experiment's own rewards, as far as a benchmark is scored by them."""
        names = self._params.reward_weights or (MAIN,)
        return {
            reward_identity(self._grade(self._params.subject, benchmark, reward))
            for benchmark in self._params.benchmarks
            for reward in benchmark.rewards
            if reward in names
        }

    def _grade(self, system: str, benchmark: EvaluatedBenchmark, reward: str) -> Artifact:
        return self._ctx.input(f"grades/{cell_name(system, benchmark.name, reward)}")

    def _scores(self, system: str, benchmark: EvaluatedBenchmark, reward: str) -> pl.Series:
        key = (system, benchmark.name, reward)
        if key not in self._grades:
            role = f"grades/{cell_name(*key)}"
            self._grades[key] = grades_of(self._ctx.input(role), self.answers[system, benchmark.name], role)
        return self._grades[key]

    def _source_share(self) -> dict[str, float]:
        if "triples" not in self._ctx.config.inputs:
            return {}
        path = self._ctx.input("triples").file("triples.parquet")
        triples = read_columns([path], {"source": pl.String}, nullable=["source"])
        return shares([source for source in triples["source"].to_list() if source is not None])


def _columns(rewards: Sequence[str] | Mapping[str, float]) -> list[str]:
    return [f"score/{reward}" for reward in rewards]


def unique(names: Sequence[str]) -> list[str]:
    """Return the names; of two equal ones the second one has its number behind it."""
    made: list[str] = []
    for index, name in enumerate(names):
        made.append(name if name not in made else f"{name}#{index + 1}")
    return made


def serves_reward(artifact: Artifact) -> str | None:
    """Return the reward that a judge serves; None for other judges."""
    asked = (artifact.manifest.config.get("params") or {}).get("serve_reward") or {}
    return asked.get("name") or asked.get("function") or asked.get("endpoint")


def _without_items(benchmark: EvaluatedBenchmark) -> DataError:
    if benchmark.kind == HELD_OUT:
        return DataError(
            "there are no held-out prompts to evaluate on",
            code="NoPrompts",
            field="prompts.evaluation.prompts",
            hint="Set prompts.evaluation.prompts to at least 1, or evaluation.enabled: false.",
        )
    return DataError(
        f"the benchmark {benchmark.name} has no items",
        code="BenchmarkEmpty",
        field="evaluation.benchmarks",
        hint="Check its bundle and limit.",
    )
