"""How long a stage takes on its accelerators, or without. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from wrpo_engine.config import SampleParams, SftParams, TrainParams
from wrpo_engine.contract.evaluation import AnswerParams, MixtureParams
from wrpo_engine.contract.fusing import AlignParams
from wrpo_engine.contract.merging import JointParams, MergeParams
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.placement import Placement
from wrpo_operator.cli.forecast_inputs import Known, facts_of, facts_of_model, parent_of
from wrpo_operator.cli.fusion_work import align_seconds, joint_seconds, merge_seconds, search_seconds
from wrpo_operator.cli.work import prompts_of, tokens_of, turns_of
from wrpo_operator.plan.model import StageNode
from wrpo_operator.plan.placing import loaded_model
from wrpo_operator.sizing.estimate import (
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    Speed,
    forward_seconds,
    generation_seconds,
    speed_of,
    training_seconds,
)
from wrpo_operator.sizing.generation import UTILIZATION, Way, room
from wrpo_operator.sizing.inventory import AcceleratorGroup
from wrpo_operator.sizing.requests import GenerationRequest


@dataclass(frozen=True, slots=True)
class _Pod:
    """A model on the accelerators of one pod."""

    facts: ModelFacts
    speed: Speed
    placement: Placement
    group: AcceleratorGroup


def accelerator_seconds(
    known: Known, node: StageNode, placement: Placement, group: AcceleratorGroup | None
) -> float | None:
    """Return the seconds that one pod would need for the whole stage, or that its gang needs; None if unknown."""
    speed = None if group is None else speed_of(group.name)
    about = facts_of(known, node)
    tokens, prompts = tokens_of(known.spec, node, known.records), prompts_of(known.spec, node, known.records)
    if speed is None or about is None or tokens is None or group is None:
        return None
    params = node.params
    if isinstance(params, MergeParams):
        return _search_seconds(known, params, _Pod(about, speed, placement, group))
    if isinstance(params, JointParams):
        return _joint_seconds(known, params, speed, items=prompts)
    if isinstance(params, SftParams | TrainParams):
        alone = training_seconds(
            about,
            speed,
            tokens=tokens,
            checkpointing=bool(params.gradient_checkpointing),
            references=isinstance(params, TrainParams),
        )
        return alone / placement.accelerators
    if isinstance(params, SampleParams | AnswerParams | MixtureParams) and prompts is not None:
        responses = prompts * params.samples_per_prompt
        pod = _Pod(about, speed, placement, group)
        return _generation(pod, responses=responses, request=loaded_model(node, about))
    return forward_seconds(about, speed, tokens=tokens)


def cpu_seconds(known: Known, node: StageNode, tokens: int | None) -> float | None:
    """Return the seconds of one pod without accelerators; None if they are unknown, or for stages of another kind."""
    if known.inventory is None:
        return None
    if isinstance(node.params, AlignParams):
        return None if tokens is None else align_seconds(node.params, tokens=tokens)
    parent = parent_of(known, node)
    if parent is None or not isinstance(node.params, MergeParams) or node.params.search is not None:
        return None
    return merge_seconds(node.params, parent)


def _generation(pod: _Pod, *, responses: int, request: GenerationRequest | None = None) -> float:
    """Return the seconds in which a pod generates; without a request, the model is loaded with the defaults."""
    request = request or GenerationRequest(facts=pod.facts)
    placement = pod.placement
    way = Way(
        group=pod.group,
        tensor=placement.tensor_parallel_size,
        pipeline=placement.pipeline_parallel_size,
        share=placement.gpu_memory_utilization or UTILIZATION,
    )
    return generation_seconds(
        request,
        pod.speed,
        responses=responses,
        accelerators=placement.per_pod,
        room=room(request, way),
    )


def _search_seconds(known: Known, params: MergeParams, pod: _Pod) -> float | None:
    """Return the seconds of a search of merge weights on one accelerator's pod."""
    search = params.search
    if search is None:
        return None
    answers = _generation(pod, responses=search.prompts)
    length = min(search.max_tokens, RESPONSE_TOKENS)
    served = search.reward or (search.judge.serve_reward if search.judge is not None else None)
    name = None if served is None else served.name
    reward = None if served is None or name is None else known.assumed.look_up(name, served.revision)
    read = search.prompts * (PROMPT_TOKENS + length)
    return search_seconds(
        search,
        merging=merge_seconds(params, pod.facts),
        answering=answers * length / RESPONSE_TOKENS,
        scoring=0.0 if reward is None else forward_seconds(reward, pod.speed, tokens=read),
    )


def _joint_seconds(known: Known, params: JointParams, speed: Speed, *, items: int | None) -> float | None:
    """Return the seconds of one accelerator that holds all members."""
    members = [facts for member in params.members if (facts := facts_of_model(known, member)) is not None]
    if items is None or len(members) < len(params.members):
        return None
    return joint_seconds(params, members, speed, answers=items * turns_of(params.benchmark))
