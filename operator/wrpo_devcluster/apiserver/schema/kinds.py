"""Served resource types: built-in ones from a table, custom ones from the current CRDs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass, field

from wrpo_devcluster.apiserver.schema import schema
from wrpo_devcluster.apiserver.schema.schema import Node
from wrpo_devcluster.client import JsonObject, Resource

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
CUSTOM_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")


@dataclass(frozen=True, eq=False)
class Kind:
    """Served version of a resource type."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    node: Node
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: frozenset[str] = frozenset()
    verbs: tuple[str, ...] = ALL_VERBS
    list_kind: str = ""
    custom: JsonObject | None = None
    """The CRD's version entry, for custom resources."""
    storage_group: str | None = None
    """Group that stores the objects, if another (events.k8s.io events are core events)."""
    selectable: frozenset[str] = field(default_factory=frozenset)

    @property
    def api_version(self) -> str:
        """`apiVersion` of the objects: group and version."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage_key(self) -> str:
        """Name of the store's table, which all versions share."""
        return f"{self.group if self.storage_group is None else self.storage_group}/{self.plural}"

    @property
    def storage_hash(self) -> str:
        """`storageVersionHash` of discovery."""
        digest = hashlib.sha256(f"{self.group}/{self.version}/{self.kind}".encode()).digest()
        return base64.b64encode(digest[:8]).decode()

    @property
    def has_status(self) -> bool:
        """True if the status has a separate endpoint."""
        return "status" in self.subresources

    @property
    def fields(self) -> frozenset[str]:
        """Return the fields that a field selector may use."""
        return frozenset({"metadata.name", "metadata.namespace"}) | self.selectable


@dataclass(frozen=True, slots=True)
class Target:
    """Object that a request addresses, or one of its subresources; a cluster-scoped object has no namespace."""

    kind: Kind
    namespace: str | None
    name: str
    subresource: str = ""


_RBAC = "rbac.authorization.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"
_EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1"
# group, kind, plural, namespaced, short names, categories, subresources
_TABLE: tuple[tuple[str, str, str, bool, str, str, str], ...] = (
    ("", "Namespace", "namespaces", False, "ns", "", "status finalize"),
    ("", "Pod", "pods", True, "po", "all", "status log eviction binding"),
    ("", "Service", "services", True, "svc", "all", "status"),
    ("", "Endpoints", "endpoints", True, "ep", "", ""),
    ("", "ConfigMap", "configmaps", True, "cm", "", ""),
    ("", "Secret", "secrets", True, "", "", ""),
    ("", "ServiceAccount", "serviceaccounts", True, "sa", "", "token"),
    ("", "Event", "events", True, "ev", "", ""),
    ("", "Node", "nodes", False, "no", "", "status"),
    ("", "PersistentVolume", "persistentvolumes", False, "pv", "", "status"),
    ("", "PersistentVolumeClaim", "persistentvolumeclaims", True, "pvc", "", "status"),
    ("", "ResourceQuota", "resourcequotas", True, "quota", "", "status"),
    ("", "LimitRange", "limitranges", True, "limits", "", ""),
    ("apps", "Deployment", "deployments", True, "deploy", "all", "status scale"),
    ("apps", "ReplicaSet", "replicasets", True, "rs", "all", "status scale"),
    ("batch", "Job", "jobs", True, "", "all", "status"),
    ("batch", "CronJob", "cronjobs", True, "cj", "all", "status"),
    ("coordination.k8s.io", "Lease", "leases", True, "", "", ""),
    (_RBAC, "Role", "roles", True, "", "", ""),
    (_RBAC, "RoleBinding", "rolebindings", True, "", "", ""),
    (_RBAC, "ClusterRole", "clusterroles", False, "", "", ""),
    (_RBAC, "ClusterRoleBinding", "clusterrolebindings", False, "", "", ""),
    ("authentication.k8s.io", "TokenReview", "tokenreviews", False, "", "", ""),
    ("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", False, "", "", ""),
    ("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews", False, "", "", ""),
    ("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", False, "", "", ""),
    ("authorization.k8s.io", "LocalSubjectAccessReview", "localsubjectaccessreviews", True, "", "", ""),
    ("authorization.k8s.io", "SelfSubjectRulesReview", "selfsubjectrulesreviews", False, "", "", ""),
    ("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions", False, "crd crds",
     "api-extensions", "status"),
    ("networking.k8s.io", "NetworkPolicy", "networkpolicies", True, "netpol", "", ""),
    ("networking.k8s.io", "Ingress", "ingresses", True, "ing", "", "status"),
    ("networking.k8s.io", "IngressClass", "ingressclasses", False, "", "", ""),
    ("policy", "PodDisruptionBudget", "poddisruptionbudgets", True, "pdb", "", "status"),
    ("scheduling.k8s.io", "PriorityClass", "priorityclasses", False, "pc", "", ""),
    ("storage.k8s.io", "StorageClass", "storageclasses", False, "sc", "", ""),
    (_ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies", False, "", "api-extensions", "status"),
    (_ADMISSION, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", False, "",
     "api-extensions", ""),
    ("events.k8s.io", "Event", "events", True, "ev", "", ""),
    ("discovery.k8s.io", "EndpointSlice", "endpointslices", True, "", "", ""),
)  # fmt: skip
_REVIEWS = {"authentication.k8s.io", "authorization.k8s.io"}
_PACKAGES = {
    "": "core", _RBAC: "rbac", _ADMISSION: "admissionregistration", "coordination.k8s.io": "coordination",
    "authentication.k8s.io": "authentication", "authorization.k8s.io": "authorization",
    "networking.k8s.io": "networking", "scheduling.k8s.io": "scheduling", "storage.k8s.io": "storage",
    "events.k8s.io": "events", "discovery.k8s.io": "discovery",
}  # fmt: skip
_SELECTABLE = {
    ("", "Pod"): "spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName spec.hostNetwork "
    "status.phase status.podIP status.nominatedNodeName",
    ("", "Event"): "involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid "
    "involvedObject.apiVersion involvedObject.resourceVersion involvedObject.fieldPath reason "
    "reportingComponent source type",
    ("events.k8s.io", "Event"): "regarding.kind regarding.namespace regarding.name regarding.uid "
    "regarding.apiVersion regarding.resourceVersion regarding.fieldPath reason reportingController type",
    ("", "Namespace"): "status.phase name",
    ("", "Node"): "spec.unschedulable",
    ("", "Secret"): "type",
    ("", "Service"): "spec.clusterIP spec.type",
    ("batch", "Job"): "status.successful",
    ("apps", "ReplicaSet"): "status.replicas",
}


def definition_of(group: str, kind: str) -> str:
    """Return the name of a built-in kind's OpenAPI definition."""
    if group == "apiextensions.k8s.io":
        return f"{_EXTENSIONS}.{kind}"
    return f"io.k8s.api.{_PACKAGES.get(group, group)}.v1.{kind}"


def builtin_kinds() -> list[Kind]:
    """Return all kinds that need no CRD."""
    return [
        Kind(
            group=group,
            version="v1",
            kind=kind,
            plural=plural,
            namespaced=namespaced,
            node=schema.builtin(definition_of(group, kind)),
            singular=kind.lower(),
            short_names=tuple(short.split()),
            categories=tuple(categories.split()),
            subresources=frozenset(subresources.split()),
            verbs=("create",) if group in _REVIEWS else ALL_VERBS,
            list_kind=f"{kind}List",
            storage_group="" if group == "events.k8s.io" else None,
            selectable=frozenset(_SELECTABLE.get((group, kind), "").split()),
        )
        for group, kind, plural, namespaced, short, categories, subresources in _TABLE
    ]


def custom_kinds(crd: JsonObject) -> list[Kind]:
    """Return the served versions of an established CRD."""
    spec = crd["spec"]
    names = crd["status"].get("acceptedNames") or spec["names"]
    found = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        raw = (version.get("schema") or {}).get("openAPIV3Schema") or {"type": "object"}
        found.append(
            Kind(
                group=spec["group"],
                version=version["name"],
                kind=names["kind"],
                plural=names["plural"],
                namespaced=spec["scope"] == "Namespaced",
                node=schema.custom_root(raw),
                singular=names.get("singular", ""),
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                subresources=frozenset(version.get("subresources") or ()),
                verbs=CUSTOM_VERBS,
                list_kind=names.get("listKind", f"{names['kind']}List"),
                custom=version,
                selectable=frozenset(entry["jsonPath"].lstrip(".") for entry in version.get("selectableFields") or ()),
            )
        )
    return found


class Registry:
    """Currently served kinds."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], Kind] = {}
        self.revision = 0
        self._added = asyncio.Event()
        for kind in builtin_kinds():
            self._kinds[kind.group, kind.version, kind.plural] = kind
        self._builtin = set(self._kinds)

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        """Return a served kind; None if there is none."""
        return self._kinds.get((group, version, plural))

    def core(self, plural: str) -> Kind:
        """Return a kind of the core group."""
        return self._kinds["", "v1", plural]

    async def wait_for(self, resource: Resource) -> Kind:
        """Return a kind as soon as it is served."""
        while (kind := self.find(resource.group, resource.version, resource.plural)) is None:
            self._added.clear()
            await self._added.wait()
        return kind

    def add_custom(self, crd: JsonObject) -> None:
        """Serve the versions of an established CRD instead of those that it had before."""
        self.remove_custom(crd["spec"]["group"], crd["spec"]["names"]["plural"])
        for kind in custom_kinds(crd):
            self._kinds[kind.group, kind.version, kind.plural] = kind
        self.revision += 1
        self._added.set()

    def remove_custom(self, group: str, plural: str) -> None:
        """Serve a custom resource no longer. Built-in kinds stay."""
        for key in [key for key in self._kinds if (key[0], key[2]) == (group, plural) and key not in self._builtin]:
            del self._kinds[key]
        self.revision += 1

    def kinds(self) -> list[Kind]:
        """Return all served kinds, each version by itself."""
        return list(self._kinds.values())

    def of_group(self, group: str, version: str) -> list[Kind]:
        """Return the kinds of one version of a group."""
        return [kind for kind in self._kinds.values() if (kind.group, kind.version) == (group, version)]

    def groups(self) -> dict[str, list[str]]:
        """Return the versions of each named group, the preferred one first."""
        found: dict[str, list[str]] = {}
        for group, version, _ in self._kinds:
            if group and version not in found.setdefault(group, []):
                found[group].append(version)
        return {group: sorted(versions, key=version_priority, reverse=True) for group, versions in found.items()}


def version_priority(version: str) -> tuple[int, int, int]:
    """Return the sort key of a Kubernetes version: v2 > v1 > v1beta2 > v1alpha1 > others."""
    import re

    match = re.match(r"^v(\d+)(?:(alpha|beta)(\d+))?$", version)
    if match is None:
        return (-1, 0, 0)
    stage = {None: 2, "beta": 1, "alpha": 0}[match.group(2)]
    return (stage, int(match.group(1)), int(match.group(3) or 0))
