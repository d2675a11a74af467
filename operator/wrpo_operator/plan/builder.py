"""Builder of an experiment's graph: stages are declared in any order, then sorted and hashed."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from wrpo_engine.config import Runtime, StageParams
from wrpo_engine.contract.definition import EVERY_ROLE, Image, Per
from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.hashing import stage_hash
from wrpo_operator.api.names import REWARD_SEPARATOR
from wrpo_operator.api.pods import Resources, SecretKeyRef
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.plan.model import Need, StageId, StageNode
from wrpo_operator.plan.params import Named, section_of


class GraphError(ValueError):
    """Stages that form no graph: a fault in the wiring of one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a stage is run. Nothing of it affects the result, so none is hashed."""

    downloads: Collection[StageId] = ()
    """Stages that download its models."""
    runtime: Runtime = field(default_factory=Runtime)
    resources: Resources | None = None
    """Replace those of the section in the spec."""
    needs: Collection[Need] = ()
    """Models for which the operator chooses accelerators."""
    image: Image | None = None
    """Replaces that of the definition."""
    secrets: Mapping[str, SecretKeyRef] = field(default_factory=dict)
    """Variable of its pods -> key of a Secret."""
    models: Mapping[str, Named] = field(default_factory=dict)
    """Parameter -> model or judge of the spec to which it refers: errors of the stage name the section of the spec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Declared:
    params: StageParams
    inputs: tuple[StageId, ...]
    role: str
    execution: Execution
    if_present: tuple[StageId, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """Argument of the wiring of a stage: the spec, and `add`."""

    spec: ExperimentSpec
    without: frozenset[str] = frozenset()
    """Names of failed sources: they keep their stages, which nothing uses."""
    _declared: dict[StageId, _Declared] = field(default_factory=dict)

    def add(
        self,
        stage: StageId,
        params: StageParams,
        *,
        inputs: Iterable[StageId] = (),
        role_name: str | None = None,
        execution: Execution | None = None,
    ) -> None:
        """Add a stage. It reads the artifacts of `inputs`.

        `role_name` follows the role of a named stage (unset: its name).
        """
        if params.kind() != stage.kind:
            raise GraphError(f"the parameters of the stage {stage} are those of the kind {params.kind()}")
        if stage in self:
            raise GraphError(f"the stage {stage} is added twice")
        definition, run = STAGES[stage.kind], execution or Execution()
        name = (role_name or stage.name) if definition.is_named else ""
        sections = {parameter: section_of(self.spec, model) for parameter, model in run.models.items()}
        runtime = run.runtime.model_copy(update={"model_sections": sections} if sections else {})
        self._declared[stage] = _Declared(
            params=params,
            inputs=tuple(inputs),
            role=f"{definition.role}/{name}" if name else definition.role,
            execution=replace(run, runtime=runtime),
        )

    def read_if_present(self, stage: StageId, *others: StageId) -> None:
        """Let a stage that was added also read the artifacts of those others that are part of the graph."""
        self._declared[stage] = replace(self._declared[stage], if_present=others)

    def __contains__(self, stage: StageId) -> bool:
        return stage in self._declared

    def nodes(self) -> tuple[StageNode, ...]:
        """Return the stages in topological order; ties are resolved by the order of addition."""
        stages = list(self._declared)
        upstream = {stage: self._upstream(stage) for stage in stages}
        missing = {stage: {*upstream[stage], *self._after(stage)} for stage in stages}
        users: dict[StageId, list[StageId]] = defaultdict(list)
        for stage in stages:
            for needed in missing[stage]:
                users[needed].append(stage)
        index = {stage: place for place, stage in enumerate(stages)}
        ready = [index[stage] for stage in stages if not missing[stage]]
        nodes: dict[StageId, StageNode] = {}
        while ready:
            stage = stages[heapq.heappop(ready)]
            nodes[stage] = self._node(stage, upstream[stage], nodes)
            for user in users[stage]:
                missing[user].discard(stage)
                if not missing[user]:
                    heapq.heappush(ready, index[user])
        if len(nodes) < len(stages):
            circle = ", ".join(str(stage) for stage in stages if stage not in nodes)
            raise GraphError(f"stages wait for each other: {circle}. The wiring of one of them must drop an input.")
        return tuple(nodes.values())

    def _upstream(self, stage: StageId) -> tuple[StageId, ...]:
        """Return the stages that a stage needs, those that download its models last."""
        declared, roles = self._declared[stage], STAGES[stage.kind].inputs
        found = [*declared.inputs, *(other for other in declared.if_present if other in self._declared)]
        for needed in (*found, *declared.execution.downloads):
            if needed not in self._declared:
                raise GraphError(f"the stage {stage} reads {needed}, which is not part of the experiment")
        if EVERY_ROLE in roles:
            found += [other for other in self._reported() if other not in found and other != stage]
        for needed in found:
            role = STAGES[needed.kind].role
            if role not in roles and EVERY_ROLE not in roles:
                raise GraphError(f"the stage {stage} reads {needed}, but inputs of its definition lack the role {role}")
        return (*found, *declared.execution.downloads)

    def _after(self, stage: StageId) -> tuple[StageId, ...]:
        """Return the stages that give the facts about a stage's models."""
        return tuple(dict.fromkeys(need.facts for need in self._declared[stage].execution.needs))

    def _reported(self) -> list[StageId]:
        """Return the stages that the report shows."""
        return [
            stage
            for stage in self._declared
            if STAGES[stage.kind].report is not None and source_of(self.spec, stage) not in self.without
        ]

    def _node(self, stage: StageId, upstream: Iterable[StageId], nodes: Mapping[StageId, StageNode]) -> StageNode:
        declared, run = self._declared[stage], self._declared[stage].execution
        inputs = {self._declared[needed].role: needed for needed in upstream}
        hashed = {role: nodes[needed].hash for role, needed in inputs.items() if needed not in run.downloads}
        return StageNode(
            id=stage,
            shape=STAGES[stage.kind].shape,
            params=declared.params,
            inputs=inputs,
            hash=stage_hash(
                stage.kind,
                declared.params.model_dump(mode="json", exclude_defaults=True),
                hashed,
                self.spec.reuse.salt,
            ),
            runtime=run.runtime,
            resources=run.resources,
            after=tuple(needed for needed in self._after(stage) if needed not in inputs.values()),
            needs=tuple(run.needs),
            image=run.image,
            secrets=run.secrets,
        )


def source_of(spec: ExperimentSpec, stage: StageId) -> str | None:
    """Return the source that a stage belongs to; None for the target's stages and for shared ones."""
    definition = STAGES[stage.kind]
    if definition.per is not Per.SOURCE:
        return None
    names = {source.name for source in spec.sources}
    return next((name for name in (stage.name, stage.name.rpartition(REWARD_SEPARATOR)[0]) if name in names), None)
