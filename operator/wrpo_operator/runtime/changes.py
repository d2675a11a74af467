"""Filter of changes of watched objects: which are visible to the planner, and how urgent they are.

A child passes through some ten changes on a real cluster: pods are bound, created, started, ended and released, and
their controllers count them. A change that ends a child, or unblocks the next one, is processed immediately. A change
of mere progress can wait, so that one reconcile covers many of them. A change invisible to the planner is dropped.
"""

from __future__ import annotations

from wrpo_operator.api import names
from wrpo_operator.plan.classify import LIVE
from wrpo_operator.plan.model import ChildState
from wrpo_operator.runtime.observe import ATTEMPT_LABELS, child_fact, pod_fact
from wrpo_operator.runtime.resources import (
    CHILD_RESOURCES,
    EXPERIMENTS,
    PODS,
    JsonObject,
    Resource,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from wrpo_operator.runtime.store import ObjectStore

NOW = 0.0
LATER_S = 3.0
"""Delay in seconds of changes that decide nothing, to batch them."""
UNDECIDED = frozenset({ChildState.PENDING, ChildState.RUNNING})


class Changes:
    """Memory of the last seen facts of each child and pod."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._seen: dict[tuple[Resource, str, str], tuple[str, int]] = {}
        """(resource, namespace, name) -> uid and digest of the last seen facts; one entry per existing object."""

    def urgency_s(self, resource: Resource, obj: JsonObject) -> float | None:
        """Return the delay of a change in seconds; None if the planner would see no difference."""
        if resource == EXPERIMENTS:
            return NOW
        stored = self._store.get(resource, namespace_of(obj), name_of(obj))
        is_gone = stored is None or uid_of(stored) != uid_of(obj)
        if is_gone:
            self._forget(resource, obj)
        if resource == PODS:
            return self._of_pod(obj, is_gone=is_gone)
        return self._of_child(resource, obj, is_gone=is_gone)

    def prune(self) -> None:
        """Forget objects that disappeared without a deletion event, i.e. all objects of a removed CRD."""
        stored = {resource: set(self._store.keys(resource)) for resource in {at[0] for at in self._seen}}
        self._seen = {at: seen for at, seen in self._seen.items() if at[1:] in stored[at[0]]}

    def _forget(self, resource: Resource, obj: JsonObject) -> None:
        at = (resource, namespace_of(obj), name_of(obj))
        if self._seen.get(at, ("", 0))[0] == uid_of(obj):
            del self._seen[at]

    def _of_child(self, resource: Resource, child: JsonObject, *, is_gone: bool) -> float | None:
        if is_gone:
            return NOW
        # The outcome of a child does not depend on its pods.
        fact = child_fact(child, ())
        if not self._is_news(resource, child, fact):
            return None
        return LATER_S if fact is not None and fact.state in UNDECIDED else NOW

    def _of_pod(self, pod: JsonObject, *, is_gone: bool) -> float | None:
        fact = pod_fact(pod)
        if not is_gone and not self._is_news(PODS, pod, fact):
            return None
        tells = fact.waiting_reason or fact.unschedulable_message or fact.gates
        if not is_gone and not fact.has_ended:
            return NOW if tells else LATER_S
        return LATER_S if self._is_its_child_undecided(pod) else NOW

    def _is_news(self, resource: Resource, obj: JsonObject, fact: object) -> bool:
        at, shown = (resource, namespace_of(obj), name_of(obj)), (uid_of(obj), hash(repr(fact)))
        is_news = self._seen.get(at) != shown
        self._seen[at] = shown
        return is_news

    def _is_its_child_undecided(self, pod: JsonObject) -> bool:
        """Return whether a child of the pod's attempt will still report its end; the pod's end then decides nothing."""
        key, namespace = labels_of(pod).get(names.LABEL_ARTIFACT_KEY, ""), namespace_of(pod)
        wanted = [labels_of(pod).get(label) for label in ATTEMPT_LABELS]
        for resource in CHILD_RESOURCES.values():
            for child in self._store.labelled(resource, names.LABEL_ARTIFACT_KEY, key, namespace):
                fact = child_fact(child, ())
                is_its = [labels_of(child).get(label) for label in ATTEMPT_LABELS] == wanted
                if is_its and fact is not None and fact.state in LIVE - {ChildState.DELETING}:
                    return True
        return False
