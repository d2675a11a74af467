"""The planner's snapshot of one experiment, from the store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from wrpo_operator.api.spec import ExperimentSpec, SpecError, parse_spec
from wrpo_operator.api.status import parse_status
from wrpo_operator.plan.model import ChildFact, ChildState, Experiment, Snapshot
from wrpo_operator.runtime.observe import child_facts, parse_time
from wrpo_operator.runtime.progress_server import ProgressBook
from wrpo_operator.runtime.resources import (
    CHILD_RESOURCES,
    PODS,
    JsonObject,
    meta,
    name_of,
    namespace_of,
    uid_of,
)
from wrpo_operator.runtime.store import ObjectStore

LIVE = frozenset({ChildState.PENDING, ChildState.RUNNING, ChildState.SUSPENDED})


class SnapshotBuilder:
    """Reads the store; keeps nothing."""

    def __init__(self, store: ObjectStore, book: ProgressBook, *, backends: Callable[[], frozenset[str]]) -> None:
        self._store = store
        self._book = book
        self._backends = backends

    def experiment(self, obj: JsonObject) -> Experiment:
        """Read one WRPOExperiment; a spec that does not parse becomes None with its errors."""
        spec: ExperimentSpec | None = None
        errors: tuple[str, ...] = ()
        try:
            spec = parse_spec(obj.get("spec") or {})
        except SpecError as error:
            errors = error.errors
        metadata = meta(obj)
        return Experiment(
            name=name_of(obj),
            namespace=namespace_of(obj),
            uid=uid_of(obj),
            generation=int(metadata.get("generation") or 0),
            deleting=bool(metadata.get("deletionTimestamp")),
            created_at=parse_time(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
            spec=spec,
            status=parse_status(obj.get("status")),
            spec_errors=errors,
        )

    def build(self, experiment: Experiment) -> Snapshot:
        """Return the snapshot of `experiment` and everything in its namespace that concerns it.

        What only the API server knows (claims, notes) is filled in by the reconciler.
        """
        facts = self._facts(experiment.namespace)
        return Snapshot(
            experiment=experiment,
            children=tuple(fact for fact in facts if fact.experiment_uid == experiment.uid),
            foreign=tuple(fact for fact in facts if fact.experiment_uid != experiment.uid and fact.state in LIVE),
            training_backends=self._backends(),
            progress=self._book.of(experiment.namespace, experiment.name),
        )

    def _facts(self, namespace: str) -> tuple[ChildFact, ...]:
        children = [child for resource in CHILD_RESOURCES.values() for child in self._store.items(resource, namespace)]
        return child_facts(children, self._store.items(PODS, namespace))
