"""Asynchronous client protocol by which controllers, scheduler and kubelet use the API server.

The API server implements it in-process, with the same validation, admission and storage as for a request over HTTP,
so that controllers need no sockets. Tests may implement it over HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, Unpack

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """A served resource type, e.g. `Resource("batch", "v1", "jobs")`; the core group is the empty string."""

    group: str
    version: str
    plural: str


PODS = Resource("", "v1", "pods")
SERVICES = Resource("", "v1", "services")
CONFIG_MAPS = Resource("", "v1", "configmaps")
SECRETS = Resource("", "v1", "secrets")
NAMESPACES = Resource("", "v1", "namespaces")
NODES = Resource("", "v1", "nodes")
EVENTS = Resource("", "v1", "events")
ENDPOINTS = Resource("", "v1", "endpoints")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
JOBS = Resource("batch", "v1", "jobs")
DEPLOYMENTS = Resource("apps", "v1", "deployments")
REPLICA_SETS = Resource("apps", "v1", "replicasets")
PYTORCH_JOBS = Resource("kubeflow.org", "v1", "pytorchjobs")
JOB_SETS = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets")
TRAIN_JOBS = Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs")
TRAINING_RUNTIMES = Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes")
CLUSTER_TRAINING_RUNTIMES = Resource("trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes")
BUDGETS = Resource("policy", "v1", "poddisruptionbudgets")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions")


class ApiError(Exception):
    """An API request was refused; `status` is the metav1.Status object the server would send."""

    def __init__(self, status: JsonObject) -> None:
        super().__init__(status.get("message", ""))
        self.status = status
        self.warnings: list[str] = []
        """Warnings that go with the reply."""

    @property
    def code(self) -> int:
        """HTTP status code, e.g. 404."""
        return int(self.status.get("code", 500))

    @property
    def reason(self) -> str:
        """metav1 reason, e.g. `NotFound`, `AlreadyExists`, `Conflict`."""
        return str(self.status.get("reason", ""))


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change. `object` is shared with the server's cache: never mutate it, copy first."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    resource: Resource
    object: JsonObject


Patch = Literal["merge", "json", "strategic", "apply"]


class Selection(TypedDict, total=False):
    """Which objects to list; without a selector, all."""

    label_selector: str
    field_selector: str


class PatchOptions(TypedDict, total=False):
    """How to apply a patch."""

    kind: Patch
    """The patch's form; without one, a merge patch."""
    subresource: str
    force: bool
    """For an apply: take over the fields that others own."""


class DeletionOptions(TypedDict, total=False):
    """How to delete an object; what is unset follows its kind's default."""

    propagation: Literal["Background", "Foreground", "Orphan"] | None
    grace_period_s: int | None
    uid: str | None
    """Delete only the object with this uid."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Options of a read of a container's log; without `tail_lines` and `since_s`, the whole log."""

    follow: bool = False
    tail_lines: int | None = None
    since_s: float | None = None
    previous: bool = False
    timestamps: bool = False


class Client(Protocol):
    """CRUD and watch, as one identity. Every method raises ApiError. Returned objects must not be mutated."""

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        """Return one object; ApiError 404 if there is none."""
        ...

    async def list(
        self, resource: Resource, namespace: str | None = None, **selection: Unpack[Selection]
    ) -> list[JsonObject]:
        """Return the items; an unknown resource type (CRD not installed) raises ApiError 404."""
        ...

    async def create(self, resource: Resource, body: JsonObject, namespace: str | None = None) -> JsonObject:
        """Store a new object and return it as stored; ApiError 409 if its name is in use."""
        ...

    async def update(self, resource: Resource, body: JsonObject, *, subresource: str = "") -> JsonObject:
        """PUT; name and namespace come from the body's metadata; a stale resourceVersion raises ApiError 409."""
        ...

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        patch: Any,
        **options: Unpack[PatchOptions],
    ) -> JsonObject:
        """Change an object and return the result; ApiError 404 if there is none, except that an apply creates it."""
        ...

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        **options: Unpack[DeletionOptions],
    ) -> None:
        """Delete an object, or begin to if it has finalizers or a grace period; ApiError 404 if there is none."""
        ...

    def watch(self, resource: Resource) -> AsyncIterator[WatchEvent]:
        """Yield ADDED for everything that exists, then every change, across namespaces, until cancelled.

        For a resource whose CRD is not installed it waits until it is.
        """
        ...
