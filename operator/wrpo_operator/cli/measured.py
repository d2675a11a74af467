"""Rates of sampling that finished experiments of the cluster reached. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from wrpo_engine.config import SampleParams
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.api.status import StageState, parse_status
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.runtime.resources import JsonObject, name_of


@dataclass(frozen=True, slots=True)
class Setting:
    """What a rate of sampling depends on."""

    model: str
    product: str
    """Product, flavor or profile of the accelerators."""
    tensor_parallel: int


@dataclass(frozen=True, slots=True)
class Rate:
    """A measured rate."""

    tokens_per_second: float
    """Generated tokens per accelerator and second of all attempts, with loading and interruptions."""
    mean_tokens: float
    """Length of a response."""
    experiment: str


Rates: TypeAlias = Mapping[Setting, Rate]


def measured_rates(experiments: Iterable[JsonObject]) -> dict[Setting, Rate]:
    """Return the rates of finished sampling stages; of several with one setting that of the most tokens."""
    found: dict[Setting, tuple[float, Rate]] = {}
    for obj in experiments:
        for setting, tokens, rate in _of_experiment(obj):
            if setting not in found or tokens > found[setting][0]:
                found[setting] = (tokens, rate)
    return {setting: rate for setting, (_, rate) in found.items()}


def _of_experiment(obj: JsonObject) -> Iterable[tuple[Setting, float, Rate]]:
    try:
        graph = build_graph(parse_spec(obj.get("spec") or {}))
    except SpecError:
        return  # Stored by another version: nothing is known of it.
    status = parse_status(obj.get("status"))
    for node in graph:
        record, params = status.stage_named(str(node.id)), node.params
        if record is None or record.hash != node.hash or not isinstance(params, SampleParams):
            continue
        placement, tokens = record.placement, record.metrics.get("tokens", 0.0)
        is_measured = record.state is StageState.SUCCEEDED and not record.cached and record.gpu_seconds and tokens
        if not is_measured or placement is None or not placement.accelerator or params.model.name is None:
            continue
        rate = Rate(tokens / (record.gpu_seconds or 1), record.metrics.get("mean_tokens", 0.0), name_of(obj))
        yield Setting(params.model.name, placement.accelerator, placement.tensor_parallel_size), tokens, rate
