"""Fitness of a candidate of a search: the mean reward of its greedy responses to prompts of the preference part."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.contract.merging import MergeParams, MergeSearch
from wrpo_engine.errors import DataError
from wrpo_engine.hub.models import ResolvedModel, stop_token_ids, tokenizer_of
from wrpo_engine.merging.building import Merge
from wrpo_engine.merging.parents import Parent
from wrpo_engine.merging.search import Found, Groups, Point, candidate_weights, groups_of, search
from wrpo_engine.sampling.backends import make_sampler
from wrpo_engine.sampling.sampler import SampleRequest, SamplerSettings
from wrpo_engine.sampling.streaming import running
from wrpo_engine.scoring.load import Reading, load_scorer
from wrpo_engine.scoring.rewards import Scorer
from wrpo_engine.seeds import seed_of
from wrpo_engine.stage import StageContext
from wrpo_engine.text.chat import end_of_turn_id, prompt_token_ids

log = logging.getLogger("wrpo_engine")

_PROMPTS_FILE = "preference.parquet"
_POINTS = "points/"
_REWARD_LENGTH = 4096


def searched(ctx: StageContext, params: MergeParams, parents: Sequence[Parent]) -> Found:
    """Search the weights of the models; points of earlier attempts are kept, and are in the artifact."""
    assert params.search is not None
    groups = groups_of(list(parents[0].facts), params.search.groups)
    fitness = _Fitness(ctx, params, parents, groups, _prompts(ctx, params.search, params.seed))
    start = params.weights * len(set(groups.values()))
    return search(
        params.search, start, seed=params.seed, fitness=fitness, memory=_Points(ctx, params.search), groups=groups
    )


def _prompts(ctx: StageContext, settings: MergeSearch, seed: int) -> list[tuple[str, str]]:
    """Return (id, text) of the prompts, chosen by the seed; DataError if there are none."""
    frame = pl.read_parquet(ctx.input("prompts").file(_PROMPTS_FILE))
    rows = sorted(zip(frame["prompt_id"], frame["prompt"], strict=True), key=lambda row: seed_of(seed, row[0]))
    if not rows:
        raise DataError(
            "the search of merge weights has no prompts: the experiment's preference part is empty",
            code="NoPrompts",
            field="prompts.sftFraction",
            hint="Lower prompts.sftFraction, or use more prompts.",
        )
    return rows[: settings.prompts]


@dataclass
class _Points:
    """The points that were evaluated, one file each in the unfinished artifact."""

    ctx: StageContext
    settings: MergeSearch

    def get(self, generation: int, index: int) -> Point | None:
        name = _name(generation, index)
        if name not in self.ctx.output.published(_POINTS):
            return None
        content = json.loads(self.ctx.output.fetch(name).read_text(encoding="utf-8"))
        self._show(generation, index)
        return Point(**{**content, "coefficients": tuple(content["coefficients"])})

    def put(self, point: Point) -> None:
        text = json.dumps(asdict(point))
        self._show(point.generation, point.index)
        self.ctx.output.publish(_name(point.generation, point.index), lambda path: _write(text, path))
        log.info(
            "candidate %d of generation %d: fitness %.4f (budget %d)",
            point.index, point.generation, point.fitness, self.settings.budget,
        )  # fmt: skip

    def _show(self, generation: int, index: int) -> None:
        """Show the candidates that are evaluated; the merge that follows counts as one."""
        done = generation * self.settings.population + index + 1
        self.ctx.progress.update(done, self.settings.candidates + 1)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _name(generation: int, index: int) -> str:
    return f"{_POINTS}generation-{generation:04d}-candidate-{index:03d}.json"


class _Fitness:
    """Merges a candidate into a temporary directory, generates responses, and scores them."""

    def __init__(
        self,
        ctx: StageContext,
        params: MergeParams,
        parents: Sequence[Parent],
        groups: Groups,
        prompts: Sequence[tuple[str, str]],
    ) -> None:
        assert params.search is not None
        self._ctx, self._params, self._settings, self._parents = ctx, params, params.search, parents
        self._groups, self._prompts = groups, prompts
        self._scorer: Scorer | None = None

    def __call__(self, coefficients: Sequence[float]) -> float:
        """Return the mean reward of a candidate's responses."""
        self._ctx.stop.raise_if_requested()
        weights = candidate_weights(self._groups, coefficients, len(self._params.models))
        merge = Merge(fields=self._params, parents=self._parents, weights_of=weights)
        directory = self._ctx.output.directory / ".tmp-candidate"
        shutil.rmtree(directory, ignore_errors=True)
        try:
            merge.write(directory, lambda _bytes: self._ctx.stop.raise_if_requested())
            responses = self._responses(directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        if self._scorer is None:
            self._scorer = load_scorer(
                self._settings.reward,
                self._ctx,
                Reading(max_length=_REWARD_LENGTH, batch_tokens=self._ctx.config.runtime.batch_tokens),
            )
        pairs = [(text, responses[key]) for key, text in self._prompts]
        scores = [reward.score for reward in self._scorer.rewards(pairs, [f"prompt {key}" for key, _ in self._prompts])]
        return sum(scores) / len(scores)

    def _responses(self, directory: Path) -> Mapping[str, str]:
        model = ResolvedModel(directory, "candidate", None, self._parents[0].model.trust_remote_code)
        tokenizer: Any = tokenizer_of(model)
        settings = SamplerSettings(
            temperature=0.0,
            top_p=1.0,
            max_tokens=self._settings.max_tokens,
            stop_token_ids=tuple(stop_token_ids(tokenizer, model, end_of_turn_id(tokenizer))),
        )
        requests = [
            SampleRequest(key=key, prompt_token_ids=prompt_token_ids(tokenizer, text), num_samples=1, seed=0, group=0)
            for key, text in self._prompts
        ]
        make = partial(make_sampler, "Transformers", model, tokenizer)
        with running(self._ctx, model, lambda poll: make(replace(settings, poll=poll))) as sampler:
            return {sampled.key: sampled.samples[0].text for sampled in sampler.sample(requests)}
