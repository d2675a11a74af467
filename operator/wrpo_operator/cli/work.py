"""Amount of work of a stage, as far as it is known before anything runs: prompts and tokens."""

from __future__ import annotations

from collections.abc import Mapping

from wrpo_engine.config import SampleParams, ScoreParams, SftParams, StageParams, TrainParams
from wrpo_engine.contract.benchmarks import BenchmarkKind
from wrpo_engine.contract.evaluation import (
    AnswerParams,
    GradeParams,
    JudgeParams,
    MixtureParams,
    PerplexityParams,
    RankParams,
    SelectParams,
)
from wrpo_engine.contract.fusing import AlignParams, RepresentParams
from wrpo_engine.contract.merging import JointParams, MergeParams, MergeSearch
from wrpo_operator.api.presets import ASKED, SIZES
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import StageStatus
from wrpo_operator.cli.fusion_work import joint_tokens
from wrpo_operator.plan.model import StageNode
from wrpo_operator.plan.placing import items_of, responses_of
from wrpo_operator.sizing.estimate import PROMPT_TOKENS, RESPONSE_TOKENS

_PAIR = PROMPT_TOKENS + RESPONSE_TOKENS
_READING_ITEMS = AnswerParams | MixtureParams | JointParams | PerplexityParams | RankParams | SelectParams | JudgeParams


def prompts_of(spec: ExperimentSpec, node: StageNode, records: Mapping[str, StageStatus]) -> int | None:
    """Return the prompts, or the items of a benchmark, that a stage reads; None if unknown.

    Without the number of prompts, only requests to judges are counted: totals without sampling would mislead.
    """
    params, counted = node.params, records.get("prepare")
    if isinstance(params, _READING_ITEMS) and (counted is not None or isinstance(params, JudgeParams)):
        return items_of(spec, node, records)
    parts = _parts(params)
    if counted is None or not parts:
        return None
    return sum(int(counted.metrics[f"prompts_{part}"]) for part in parts)


def _parts(params: StageParams) -> tuple[str, ...]:
    match params:
        case SampleParams():
            return params.parts
        case SftParams() | RepresentParams() | AlignParams():
            return ("sft",)
        case TrainParams():
            return ("preference",)
        case _:
            return ()


def tokens_of(spec: ExperimentSpec, node: StageNode, records: Mapping[str, StageStatus]) -> int | None:
    """Return the tokens of prompts and responses that go through a stage's model, or through a judge."""
    params = node.params
    if isinstance(params, ScoreParams | GradeParams):
        rows = responses_of(node, records)
        return None if rows is None else rows * _PAIR
    if isinstance(params, MergeParams):
        return tokens_of_search(params.search) if params.search is not None and "prepare" in records else None
    prompts = prompts_of(spec, node, records)
    if prompts is None:
        return None
    match params:
        case SampleParams():
            return prompts * params.samples_per_prompt * _PAIR
        case AnswerParams():
            return prompts * turns_of(params.benchmark) * params.samples_per_prompt * _PAIR
        case SftParams():
            return prompts * params.epochs * _PAIR
        case TrainParams():
            return prompts * params.epochs * (PROMPT_TOKENS + 3 * RESPONSE_TOKENS)
        case RepresentParams():
            return prompts * _PAIR
        case AlignParams():
            return prompts * (1 + len(params.source_inputs)) * RESPONSE_TOKENS
        case _:
            return _tokens_of_reading(params, prompts)


def turns_of(benchmark: BenchmarkKind) -> int:
    """Return the answers to one item of a benchmark."""
    size = SIZES.get(benchmark)
    return 1 if size is None else size.turns


def tokens_of_search(search: MergeSearch) -> int:
    """Return the tokens of prompts and answers of all candidates of a search."""
    return search.candidates * search.prompts * (PROMPT_TOKENS + min(search.max_tokens, RESPONSE_TOKENS))


def _tokens_of_reading(params: StageParams, items: int) -> int | None:
    """Return the tokens of a stage that reads answers of others, or prompts alone."""
    match params:
        case MixtureParams():
            return items * params.samples_per_prompt * (_PAIR + len(params.references) * RESPONSE_TOKENS)
        case JointParams():
            return joint_tokens(params, answers=items * turns_of(params.benchmark))
        case PerplexityParams():
            return items * PROMPT_TOKENS
        case RankParams():
            pairs = len(params.members) * (len(params.members) - 1)
            return items * pairs * (PROMPT_TOKENS + 2 * RESPONSE_TOKENS)
        case JudgeParams():
            asked = ASKED[params.benchmark_protocol]
            reply = RESPONSE_TOKENS if asked.has_reasons else 1
            return items * asked.requests * (PROMPT_TOKENS + asked.answers * RESPONSE_TOKENS + reply)
        case _:
            return None
