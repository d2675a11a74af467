"""Warnings about an experiment: what looks like a mistake but prevents nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from wrpo_engine.config import SampleParams, SftParams, TrainParams
from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.evaluation import SEPARATOR, AnswerParams, MixtureParams, PerplexityParams
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.contract.types import is_hub_id
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import StageState, StageStatus
from wrpo_operator.plan.demands import demand_of, limits_of
from wrpo_operator.plan.model import StageNode
from wrpo_operator.plan.placing import facts_in, model_of, requests_of
from wrpo_operator.plan.resources import devices_in, devices_of, gpus_of
from wrpo_operator.sizing.catalogue import known_facts
from wrpo_operator.sizing.generation import PIPELINE
from wrpo_operator.sizing.inventory import Inventory

LARGE = 1_000_000_000
"""Parameters from which a model on CPUs is more likely a mistake than a choice."""
_GENERATING = SampleParams | AnswerParams | MixtureParams | PerplexityParams


def warnings_of(
    spec: ExperimentSpec,
    nodes: Sequence[StageNode],
    inventory: Inventory | None,
    records: Mapping[str, StageStatus] | None = None,
) -> tuple[str, ...]:
    """Return one sentence for each suspicious thing, with its remedy.

    `nodes` have their placements. `records` say what stages have found, by stage: facts about models (well-known models
    need none), and numbers of items.
    """
    known = records or {}
    facts = facts_in(known)
    totals = limits_of(spec, inventory).totals
    found = [
        sentence
        for node in nodes
        for sentence in (
            *(() if _is_open(node, inventory) else _on_cpu(spec, node, facts)),
            *_idle_accelerators(spec, node),
            *(_above_total(spec, node, inventory, totals) if totals else ()),
            *_above_max_requests(spec, node, known),
        )
    ]
    found += _downloads(spec, nodes, inventory)
    if inventory is not None:
        found += [*_above_cluster(spec, inventory), *inventory.faults]
    return tuple(dict.fromkeys(found))


def _is_open(node: StageNode, inventory: Inventory | None) -> bool:
    """Return whether the operator has yet to choose accelerators for a stage."""
    return bool(node.needs) and inventory is not None and node.placement is None


def _on_cpu(spec: ExperimentSpec, node: StageNode, facts: Mapping[str, ModelFacts]) -> Iterator[str]:
    """Yield the large models that no accelerator runs."""
    if gpus_of(spec, node) or devices_in(spec.pod_template):
        return
    name = model_of(node) or spec.target.model
    size = _facts_about(node, name, facts)
    if size is None or size.parameters < LARGE:
        return
    billions = f"{size.parameters / LARGE:.1f} billion parameters"
    params = node.params
    if isinstance(params, _GENERATING) and params.backend == "vLLM":
        yield (
            f"Stage {node.id} runs {name} ({billions}) with vLLM on CPUs, which takes weeks. Give it accelerators in "
            f"spec.resources, or let the operator choose them."
        )
    if isinstance(params, SftParams | TrainParams):
        slow = " in bfloat16, which is slower than float32 there" if params.precision == "bfloat16" else ""
        yield (
            f"Stage {node.id} trains {name} ({billions}) on CPUs{slow}; this takes weeks. Set training.gpusPerNode, or "
            f"let the operator choose accelerators."
        )


def _facts_about(node: StageNode, name: str, facts: Mapping[str, ModelFacts]) -> ModelFacts | None:
    if node.needs and str(node.needs[0].facts) in facts:
        return facts[str(node.needs[0].facts)]
    known = known_facts(name)
    return None if known is None else known.facts


def _idle_accelerators(spec: ExperimentSpec, node: StageNode) -> Iterator[str]:
    """Yield the pods that request more accelerators than their model is divided over."""
    if node.placement is not None or not isinstance(node.params, _GENERATING):
        return
    pipeline = node.runtime.engine_args.get(PIPELINE, 1)
    used = node.runtime.tensor_parallel_size * (pipeline if isinstance(pipeline, int) else 1)
    for name, count in devices_of(spec, node).items():
        if count > used:
            yield (
                f"Each pod of stage {node.id} requests {count} {name} and uses {used}. Set tensorParallelSize to "
                f"{count}, or request {used}."
            )


def _downloads(spec: ExperimentSpec, nodes: Sequence[StageNode], inventory: Inventory | None) -> Iterator[str]:
    """Yield one sentence if several pods of a stage download a model, which does not change as stages start."""
    if spec.model_cache.enabled:
        return
    for node in nodes:
        name = model_of(node)
        is_repeated = node.runtime.shards > 1 or _is_open(node, inventory)
        if node.shape is Shape.INDEXED_JOB and is_repeated and name is not None and is_hub_id(name):
            yield (
                f"Each pod of a stage downloads its model, for example {name} in stage {node.id}. Set "
                "modelCache.enabled to download each model once."
            )
            return


def _above_total(
    spec: ExperimentSpec, node: StageNode, inventory: Inventory | None, totals: Mapping[str, int]
) -> Iterator[str]:
    """Yield the stages that request more accelerators than a group has."""
    demand = demand_of(spec, node, inventory)
    total = totals.get(demand.group)
    if total is not None and demand.accelerators > total:
        effect = "its pods run one after the other"
        if node.shape is Shape.TRAINING:
            effect = "its pods never run at the same time, as a gang must"
        yield (
            f"Stage {node.id} requests {demand.accelerators} accelerators, and {demand.group} has {total}: {effect}. "
            "Lower its shards, nodes or accelerators per pod."
        )


def _above_max_requests(spec: ExperimentSpec, node: StageNode, records: Mapping[str, StageStatus]) -> Iterator[str]:
    """Yield the limit of a judge that a stage will exceed, one sentence for all systems."""
    limit, needed = node.runtime.judge_max_requests, requests_of(spec, node, records)
    record = records.get(str(node.id))
    if limit is None or needed is None or needed <= limit or (record and record.state is StageState.SUCCEEDED):
        return
    if node.id.kind == "merge":
        what, remedy = f"the search of {node.id}", "budget or prompts of the search"
    else:
        what, remedy = f"one system on {node.id.name.split(SEPARATOR)[1]}", "limit of the benchmark"
    yield (
        f"{node.runtime.model_sections['model']}.maxRequests is {limit}, and {what} needs {needed} requests, retries "
        f"not counted; a stage that may not send all of them fails. Raise it, or lower {remedy}."
    )


def _above_cluster(spec: ExperimentSpec, inventory: Inventory) -> Iterator[str]:
    most, totals = spec.scheduling.max_gpus, [group.total for group in inventory.groups]
    total = sum(found for found in totals if found is not None)
    if most is not None and None not in totals and most > total:
        yield (
            f"scheduling.maxGpus is {most}, and there are {total} accelerators ({inventory.source}); it limits nothing."
        )
