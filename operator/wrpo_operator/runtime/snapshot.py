"""Snapshots of experiments for the planner, built from the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from wrpo_operator.api import names
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.api.pod_template import STRICT, PodTemplatePolicy
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import ExperimentStatus, StageState, StageStatus, parse_status
from wrpo_operator.plan.classify import LIVE
from wrpo_operator.plan.graph import build_graph, graph_errors
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment, PodFact, Snapshot
from wrpo_operator.plan.starts import key_of
from wrpo_operator.runtime.observe import child_fact, child_facts, has_ended, parse_time, pod_fact
from wrpo_operator.runtime.progress_server import ProgressStore
from wrpo_operator.runtime.resources import (
    CHILD_RESOURCES,
    EXPERIMENTS,
    PODS,
    JsonObject,
    labels_of,
    meta,
    name_of,
    namespace_of,
    uid_of,
)
from wrpo_operator.runtime.siblings import Siblings
from wrpo_operator.runtime.store import Key, ObjectStore


@dataclass(frozen=True, slots=True)
class _ParsedSpec:
    """Parsed spec of one generation, which never changes."""

    uid: str
    generation: int
    spec: ExperimentSpec | None
    errors: tuple[str, ...]
    artifacts: frozenset[str] | None
    """Keys of the artifacts it needs; None if they depend on failures of sources."""


class SnapshotBuilder:
    """Reads the store and caches parsed specs."""

    def __init__(
        self,
        store: ObjectStore,
        progress: ProgressStore,
        *,
        backends: Callable[[], frozenset[str]],
        policy: PodTemplatePolicy = STRICT,
    ) -> None:
        self._store = store
        self._progress = progress
        self._backends = backends
        self._policy = policy
        self._parsed: dict[Key, _ParsedSpec] = {}
        self._siblings = Siblings(store)
        self._waiters: dict[tuple[str, str | None], set[Key]] = {}
        """(namespace, artifact key or None for any) -> experiments that need it."""

    def experiment(self, obj: JsonObject) -> Experiment:
        """Parse one WRPOExperiment; a spec that does not parse becomes None with its errors."""
        metadata = meta(obj)
        read = self._spec_of(obj)
        return Experiment(
            name=name_of(obj),
            namespace=namespace_of(obj),
            uid=uid_of(obj),
            generation=read.generation,
            deleting=bool(metadata.get("deletionTimestamp")),
            created_at=parse_time(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
            spec=read.spec,
            status=parse_status(obj.get("status")),
            spec_errors=read.errors,
        )

    def build(self, experiment: Experiment) -> Snapshot:
        """Return the snapshot of `experiment` and everything in its namespace that concerns it.

        The reconciler adds facts that only the API server has (claims, notes).
        """
        return Snapshot(
            experiment=experiment,
            children=child_facts(
                self._labelled_children(names.LABEL_EXPERIMENT_UID, experiment.uid, experiment.namespace),
                self._store.labelled(PODS, names.LABEL_EXPERIMENT_UID, experiment.uid, experiment.namespace),
            ),
            foreign=tuple(self._foreign(experiment)),
            shared=self._shared(experiment),
            pods=self._pods(experiment),
            training_backends=self._backends(),
            progress=self._progress.of(experiment.namespace, experiment.name),
        )

    def waiters(self, child: JsonObject) -> frozenset[Key]:
        """Return the experiments that may wait for the artifact of a child, including its own."""
        return self.waiting(namespace_of(child), labels_of(child).get(names.LABEL_ARTIFACT_KEY, ""))

    def waiting(self, where: str, key: str) -> frozenset[Key]:
        """Return the experiments of a namespace that may wait for an artifact."""
        return frozenset(self._waiters.get((where, key), ())) | frozenset(self._waiters.get((where, None), ()))

    def waiting_for_record(self, before: Experiment, after: ExperimentStatus) -> frozenset[Key]:
        """Return the experiments that may take over the stages that have newly succeeded in an experiment's status."""
        known = {(stage.name, stage.hash) for stage in before.status.stages if stage.state is StageState.SUCCEEDED}
        done = {(stage.name, stage.hash) for stage in after.stages if stage.state is StageState.SUCCEEDED} - known
        obj = self._store.get(EXPERIMENTS, before.namespace, before.name) if done else None
        if obj is None or before.spec is None or not labels_of(obj).get(names.LABEL_SWEEP_UID):
            return frozenset()
        nodes = (node for node in build_graph(before.spec) if (str(node.id), node.hash) in done)
        found = (self.waiting(before.namespace, key_of(before.spec, node)) for node in nodes)
        return frozenset().union(*found) - {(before.namespace, before.name)}

    def forget(self, key: Key) -> None:
        """Drop the cache of a deleted experiment."""
        read = self._parsed.pop(key, None)
        for asked in _wanted(key, read):
            waiters = self._waiters[asked]
            waiters.discard(key)
            if not waiters:
                del self._waiters[asked]

    def _shared(self, experiment: Experiment) -> dict[tuple[str, str], StageStatus]:
        """Return the records of stages that siblings in the same sweep have finished and this one lacks."""
        obj = self._store.get(EXPERIMENTS, experiment.namespace, experiment.name)
        if obj is None or experiment.spec is None or not labels_of(obj).get(names.LABEL_SWEEP_UID):
            return {}
        done = {(stage.name, stage.hash) for stage in experiment.status.stages if stage.state is StageState.SUCCEEDED}
        wanted = ((str(node.id), node.hash) for node in build_graph(experiment.spec))
        return self._siblings.finished(obj, (stage for stage in wanted if stage not in done))

    def _foreign(self, experiment: Experiment) -> Iterator[ChildFact]:
        """Yield children of other experiments that create artifacts that this one may need."""
        own = self._store.get(EXPERIMENTS, experiment.namespace, experiment.name) or {}
        read = self._parsed.get((experiment.namespace, experiment.name))
        if read is None or read.spec is None:
            return
        if read.artifacts is None:
            found = (
                child for kind in CHILD_RESOURCES.values() for child in self._store.items(kind, experiment.namespace)
            )
        else:
            found = (
                child
                for artifact in sorted(read.artifacts)
                for child in self._labelled_children(names.LABEL_ARTIFACT_KEY, artifact, experiment.namespace)
            )
        for child in found:
            if labels_of(child).get(names.LABEL_EXPERIMENT_UID) == experiment.uid:
                continue
            # Whether a child is live does not depend on its pods.
            fact = child_fact(child, ())
            if fact is not None and (fact.state in LIVE or self._is_unrecorded(own, fact)):
                yield fact

    def _is_unrecorded(self, own: JsonObject, child: ChildFact) -> bool:
        """Return whether a sibling in the same sweep will soon record that a child has succeeded."""
        if child.state is not ChildState.SUCCEEDED or not labels_of(own).get(names.LABEL_SWEEP_UID):
            return False
        stage = (child.stage, child.stage_hash)
        return self._siblings.will_record(own, child.experiment_uid) and not self._siblings.finished(own, [stage])

    def _pods(self, experiment: Experiment) -> dict[str, tuple[PodFact, ...]]:
        """Return the pods that have not ended, by artifact key, for artifacts that the experiment needs."""
        read = self._parsed.get((experiment.namespace, experiment.name))
        if read is None or read.spec is None:
            return {}
        if read.artifacts is None:
            found = self._store.items(PODS, experiment.namespace)
        else:
            found = (
                pod
                for artifact in sorted(read.artifacts)
                for pod in self._store.labelled(PODS, names.LABEL_ARTIFACT_KEY, artifact, experiment.namespace)
            )
        pods: dict[str, tuple[PodFact, ...]] = {}
        for pod in found:
            key = labels_of(pod).get(names.LABEL_ARTIFACT_KEY, "")
            if key and not has_ended(pod):
                pods[key] = (*pods.get(key, ()), pod_fact(pod))
        return pods

    def _labelled_children(self, label: str, value: str, namespace: str) -> Iterator[JsonObject]:
        for resource in CHILD_RESOURCES.values():
            yield from self._store.labelled(resource, label, value, namespace)

    def _spec_of(self, obj: JsonObject) -> _ParsedSpec:
        key = (namespace_of(obj), name_of(obj))
        uid, generation = uid_of(obj), int(meta(obj).get("generation") or 0)
        known = self._parsed.get(key)
        if known is not None and generation and (known.uid, known.generation) == (uid, generation):
            return known
        self.forget(key)
        read = self._parsed[key] = _parse(obj, uid, generation, self._policy)
        for asked in _wanted(key, read):
            self._waiters.setdefault(asked, set()).add(key)
        return read


def _parse(obj: JsonObject, uid: str, generation: int, policy: PodTemplatePolicy) -> _ParsedSpec:
    try:
        spec = parse_spec(obj.get("spec") or {}, policy)
    except SpecError as error:
        return _ParsedSpec(uid, generation, None, error.errors, frozenset())
    too_large = graph_errors(spec)
    if too_large:
        return _ParsedSpec(uid, generation, None, too_large, frozenset())
    if spec.sampling.on_source_failure == "Continue":
        return _ParsedSpec(uid, generation, spec, (), None)
    return _ParsedSpec(uid, generation, spec, (), frozenset(key_of(spec, node) for node in build_graph(spec)))


def _wanted(key: Key, read: _ParsedSpec | None) -> Iterator[tuple[str, str | None]]:
    if read is None:
        return
    if read.artifacts is None:
        yield key[0], None
    for artifact in read.artifacts or ():
        yield key[0], artifact
