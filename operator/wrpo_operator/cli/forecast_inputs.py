"""What is known, or assumed, of an experiment before it runs. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wrpo_engine.config import FetchParams, InspectParams, ModelRef, SampleParams
from wrpo_engine.contract.evaluation import AnswerParams, MixtureParams, SelectParams
from wrpo_engine.contract.fusing import RepresentParams
from wrpo_engine.contract.merging import JointParams, MergeParams
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import StageFacts, StageState, StageStatus
from wrpo_operator.cli.measured import Rates
from wrpo_operator.cli.work import prompts_of
from wrpo_operator.plan.model import StageId, StageNode
from wrpo_operator.plan.placing import model_of
from wrpo_operator.sizing.inventory import Inventory

LookUp = Callable[[str, str | None], ModelFacts | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What is known or assumed before the experiment runs."""

    look_up: LookUp
    prompts: int | None = None
    """Size of the data set, for specs that set no limit."""
    rates: Rates = field(default_factory=dict)
    """Rates that earlier experiments reached; they precede calculated ones."""


@dataclass(slots=True)
class Known:
    """What is known of an experiment, and what its stages would have found so far."""

    spec: ExperimentSpec
    inventory: Inventory | None
    assumed: Assumed
    prompts: int | None
    records: dict[str, StageStatus] = field(default_factory=dict)
    top_k: dict[StageId, int] = field(default_factory=dict)
    """Tokens that the stages which represent rows keep for each position."""


def _record(name: str, facts: ModelFacts | None = None, metrics: Mapping[str, float] | None = None) -> StageStatus:
    found = None if facts is None else StageFacts.model_validate(facts.model_dump())
    return StageStatus(name=name, state=StageState.SUCCEEDED, hash="", facts=found, metrics=dict(metrics or {}))


def count_prompts(known: Known) -> None:
    """Record what `prepare` would count."""
    if known.prompts is None:
        return
    evaluation = known.spec.prompts.evaluation
    own = 0 if evaluation.dataset is not None else evaluation.prompts
    rest = max(0, known.prompts - own)
    sft = int(rest * known.spec.prompts.sft_fraction)
    counted = {"prompts_sft": sft, "prompts_preference": rest - sft, "prompts_evaluation": evaluation.prompts}
    known.records["prepare"] = _record("prepare", metrics=counted)


def remember(known: Known, node: StageNode) -> None:
    """Record what a stage would find: facts about a model, the number of responses."""
    params, name = node.params, str(node.id)
    if isinstance(params, InspectParams | FetchParams) and params.model.name is not None:
        facts = known.assumed.look_up(params.model.name, params.model.revision)
        if facts is not None:
            known.records[name] = _record(name, facts)
    if isinstance(params, RepresentParams):
        known.top_k[node.id] = params.top_k
    prompts = prompts_of(known.spec, node, known.records)
    if isinstance(params, SampleParams | AnswerParams | MixtureParams) and prompts is not None:
        known.records[name] = _record(name, metrics={"rows": prompts * params.samples_per_prompt})
    if isinstance(params, SelectParams | JointParams) and prompts is not None:
        known.records[name] = _record(name, metrics={"rows": prompts})


def facts_of(known: Known, node: StageNode) -> ModelFacts | None:
    """Return the facts about the model that decides a stage's time; None if they are unknown."""
    record = known.records.get(str(node.needs[0].facts)) if node.needs else None
    model = model_of(node) or known.spec.target.model
    return record.facts if record is not None else known.assumed.look_up(model, None)


def facts_of_model(known: Known, model: ModelRef) -> ModelFacts | None:
    """Return the size of a model; what a stage of the experiment makes is as large as the target."""
    target = known.spec.target
    return known.assumed.look_up(
        *((target.model, target.revision) if model.name is None else (model.name, model.revision))
    )


def parent_of(known: Known, node: StageNode) -> ModelFacts | None:
    """Return the size of the models that a stage merges, which have one architecture."""
    if not isinstance(node.params, MergeParams):
        return None
    return facts_of_model(known, next(iter(node.params.parents.values())))
