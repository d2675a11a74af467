"""Resource types that the operator reads and writes, and their URLs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from wrpo_operator.api.backends import BACKENDS, CHILD_KINDS, JOB, ResourceType

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """A served resource type; the core group is the empty string."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """Group and version as in the manifest."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_path(self) -> str:
        """Path of the group-version's discovery document."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """Path of one object, or of the collection when `name` is None."""
        parts = [self.group_path]
        if namespace and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


def _served(resource: ResourceType) -> Resource:
    return Resource(resource.group, resource.version, resource.plural, resource.kind)


CHILD_RESOURCES: dict[str, Resource] = {name: _served(kind.resource) for name, kind in CHILD_KINDS.items()}
"""Resource types of children, by kind."""
JOBS = CHILD_RESOURCES[JOB.kind]
EXPERIMENTS = Resource("wrpo.ai", "v1alpha1", "wrpoexperiments", "WRPOExperiment")
SWEEPS = Resource("wrpo.ai", "v1alpha1", "wrposweeps", "WRPOSweep")
PODS = Resource("", "v1", "pods", "Pod")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
EVENTS = Resource("", "v1", "events", "Event")
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta1", "workloads", "Workload")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
LOCAL_QUEUES = Resource("kueue.x-k8s.io", "v1beta1", "localqueues", "LocalQueue")
CLUSTER_QUEUES = Resource("kueue.x-k8s.io", "v1beta1", "clusterqueues", "ClusterQueue", namespaced=False)
COHORTS = Resource("kueue.x-k8s.io", "v1beta1", "cohorts", "Cohort", namespaced=False)
FLAVORS = Resource("kueue.x-k8s.io", "v1beta1", "resourceflavors", "ResourceFlavor", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)

POD_GROUPS = (
    Resource("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup"),
    Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup"),
)

_COMPANIONS = tuple(_served(resource) for backend in BACKENDS.values() for resource in backend.companions)

APPLIED_RESOURCES: dict[tuple[str, str], Resource] = {
    (resource.api_version, resource.kind): resource
    for resource in (*CHILD_RESOURCES.values(), *POD_GROUPS, *_COMPANIONS, CONFIG_MAPS, SERVICE_ACCOUNTS)
}
"""Resource types of rendered manifests, by apiVersion and kind."""


def meta(obj: JsonObject) -> JsonObject:
    """Return the object's metadata, never None."""
    return obj.get("metadata") or {}


def name_of(obj: JsonObject) -> str:
    """Return metadata.name, or the empty string."""
    return str(meta(obj).get("name", ""))


def namespace_of(obj: JsonObject) -> str:
    """Return metadata.namespace, or the empty string for a cluster-scoped object."""
    return str(meta(obj).get("namespace", ""))


def uid_of(obj: JsonObject) -> str:
    """Return metadata.uid, or the empty string."""
    return str(meta(obj).get("uid", ""))


def labels_of(obj: JsonObject) -> dict[str, str]:
    """Return metadata.labels, never None."""
    return meta(obj).get("labels") or {}


def version_of(obj: JsonObject) -> int | None:
    """Return resourceVersion as a number, or None if it is not one; versions are then not compared."""
    text = str(meta(obj).get("resourceVersion", ""))
    return int(text) if text.isdecimal() else None
