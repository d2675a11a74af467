"""Candidates of a search: merged into a temporary directory, they answer greedily."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from wrpo_engine.answering.dialogue import conversation
from wrpo_engine.bundles.items import BenchItem
from wrpo_engine.contract.merging import MergeParams
from wrpo_engine.hub.models import ResolvedModel, stop_token_ids, tokenizer_of
from wrpo_engine.merging.building import Merge
from wrpo_engine.merging.parents import Parent
from wrpo_engine.merging.search import Groups, candidate_weights
from wrpo_engine.sampling.backends import make_sampler
from wrpo_engine.sampling.limits import shared_context
from wrpo_engine.sampling.sampler import Sampler, SampleRequest, SamplerSettings
from wrpo_engine.sampling.streaming import running
from wrpo_engine.stage import StageContext
from wrpo_engine.text.chat import conversation_prompt_ids, end_of_turn_id

log = logging.getLogger("wrpo_engine")

Answers = dict[str, tuple[str, ...]]
"""Item id -> answers by turn."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The merged models of a search."""

    ctx: StageContext
    params: MergeParams
    parents: Sequence[Parent]
    groups: Groups

    def answers(self, coefficients: Sequence[float], items: Sequence[BenchItem]) -> Answers:
        """Return a candidate's answers to items, turn by turn. A prompt that fills the context gets an empty one."""
        self.ctx.stop.raise_if_requested()
        weights = candidate_weights(self.groups, coefficients, len(self.params.models))
        merge = Merge(fields=self.params, parents=self.parents, weights_of=weights)
        directory = self.ctx.output.directory / ".tmp-candidate"
        shutil.rmtree(directory, ignore_errors=True)
        try:
            merge.write(directory, lambda _bytes: self.ctx.stop.raise_if_requested())
            return self._answers_of(directory, items)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _answers_of(self, directory: Path, items: Sequence[BenchItem]) -> Answers:
        assert self.params.search is not None
        model = ResolvedModel(directory, "candidate", None, self.parents[0].model.trust_remote_code)
        tokenizer: Any = tokenizer_of(model)
        context = shared_context(model, self.ctx.config.runtime.context_limit)
        settings = SamplerSettings(
            temperature=0.0,
            top_p=1.0,
            max_tokens=self.params.search.max_tokens,
            stop_token_ids=tuple(stop_token_ids(tokenizer, model, end_of_turn_id(tokenizer))),
            max_model_length=context,
        )
        make = partial(make_sampler, "Transformers", model, tokenizer)
        answers: Answers = {item.item_id: () for item in items}
        with running(self.ctx, model, lambda poll: make(replace(settings, poll=poll))) as sampler:
            for turn in range(max(len(item.turns) for item in items)):
                _answer_turn(sampler, tokenizer, [item for item in items if turn < len(item.turns)], answers, context)
        return answers


def _answer_turn(
    sampler: Sampler, tokenizer: Any, items: Sequence[BenchItem], answers: Answers, context: int | None
) -> None:
    """Add the answers to the next turn of items."""
    prompts = {
        item.item_id: conversation_prompt_ids(tokenizer, conversation(item, answers[item.item_id])) for item in items
    }
    fitting = {key: ids for key, ids in prompts.items() if context is None or len(ids) < context}
    if len(fitting) < len(prompts):
        log.warning("%d of %d prompts fill the context: the answers are empty", len(prompts) - len(fitting), len(items))
    requests = [
        SampleRequest(key=key, prompt_token_ids=ids, num_samples=1, seed=0, group=0) for key, ids in fitting.items()
    ]
    texts = {sampled.key: sampled.samples[0].text for sampled in sampler.sample(requests)} if requests else {}
    for key in prompts:
        answers[key] += (texts.get(key, ""),)
