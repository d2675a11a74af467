"""Sections of the spec about models that are merged, or that choose each token together."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from wrpo_engine.contract.base import Role
from wrpo_engine.contract.merging import Factor, JointFields, MergeFields, SearchFields
from wrpo_engine.contract.types import ATOMIC
from wrpo_operator.api.base import SpecModel
from wrpo_operator.api.members import BenchmarkName, JudgeName, Members, SystemName
from wrpo_operator.api.names import TARGET
from wrpo_operator.api.sections import RewardName

_ALIASES = {"weight": "weights", "scale": "lambda"}


class SearchObjective(SpecModel):
    """The score of a benchmark by a judge, on items that no system of the evaluation answers."""

    benchmark: Annotated[BenchmarkName, Role.COMPUTED]
    """Name of a benchmark with `development` and without `baseline`: candidates answer its development items."""
    judge: Annotated[JudgeName, Role.COMPUTED]
    """Name of a judge that reads this benchmark, with endpoint or serveReward."""


class Search(SearchFields, SpecModel):
    """Search of the weights of each group of layers by CMA-ES, in the manner of unconstrained model merging (arXiv
    2410.13699), which published no code. The first candidate is weights itself.
    """

    reward: Annotated[RewardName | None, Role.COMPUTED] = None
    """Reward whose mean over a candidate's greedy answers to preference prompts is maximised: `main`, or the name of an
    additional reward or of a judge with a reward. Unset: main, or objective."""
    objective: Annotated[SearchObjective | None, Role.COMPUTED] = None
    """Benchmark whose score by a judge is maximised instead of a reward. Unset: reward."""


class MergeSettings(MergeFields, SpecModel):
    """How several models become one."""

    model_config = ConfigDict(alias_generator=lambda name: _ALIASES.get(name, to_camel(name)))

    weight: Annotated[
        tuple[Factor, ...], Field(min_length=1, max_length=64, json_schema_extra=ATOMIC), Role.COMPUTED
    ] = (1.0,)
    """Weight of each model, in their order with `*` replaced by all sources, or one for all (Linear, TaskArithmetic,
    TIES, DARE). The weight of a failed source is left out with it."""
    search: Annotated[Search | None, Role.COMPUTED] = None
    """Search the weights (TaskArithmetic, TIES). Unset: weights apply to all tensors."""

    @property
    def origin(self) -> str | None:
        """Name of the model that gives configuration and tokenizer; None: the first of the models."""
        return TARGET if self.needs_base else None


class Merge(MergeSettings):
    """One model of the weights of several models of the same architecture."""

    base: Annotated[SystemName | None, Role.COMPUTED] = None
    """Model that deltas are relative to; it gives configuration, tokenizer and chat template. Unset: target, and for
    Linear and SLERP the first of models."""
    models: Annotated[Members, Role.COMPUTED]
    """Models to merge: target, sft, trained, sources, and systems with model, or with fuse that is not merged. `*`: all
    sources."""

    @property
    def origin(self) -> str | None:
        """Name of the model that gives configuration and tokenizer; None: the first of the models."""
        return self.base or super().origin


class FusedMerge(MergeSettings):
    """Merge of the models that the target becomes by each source alone, relative to the target (FuseChat)."""


class Joint(JointFields, SpecModel):
    """Answers of several small models that choose each token together, in one pod."""

    members: Annotated[Members, Role.COMPUTED]
    """Two models or more: target, sft, trained, sources, and systems with model, merge or fuse. `*`: all sources. The
    first one gives the vocabulary of the answers (EVA)."""
