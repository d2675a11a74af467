"""Initial objects of an API server: system namespaces, default roles and bindings, priority classes."""

from __future__ import annotations

from wrpo_devcluster.apiserver.apis.request import MASTERS, Context, User
from wrpo_devcluster.apiserver.registry.pipeline import RequestPipeline
from wrpo_devcluster.apiserver.schema.kinds import Target
from wrpo_devcluster.client import JsonObject

_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]
_WRITE = ["create", "delete", "deletecollection", "patch", "update"]
_LABELS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
_CORE_READ = [
    "configmaps", "endpoints", "events", "limitranges", "namespaces", "persistentvolumeclaims",
    "persistentvolumeclaims/status", "pods", "pods/log", "pods/status", "resourcequotas", "resourcequotas/status",
    "serviceaccounts", "services", "services/status",
]  # fmt: skip
_CORE_WRITE = ["configmaps", "events", "persistentvolumeclaims", "pods", "secrets", "serviceaccounts", "services"]
_WORKLOADS = {
    "apps": ["deployments", "deployments/scale", "deployments/status", "replicasets", "replicasets/scale",
             "replicasets/status"],
    "batch": ["cronjobs", "cronjobs/status", "jobs", "jobs/status"],
    "networking.k8s.io": ["ingresses", "ingresses/status", "networkpolicies"],
    "policy": ["poddisruptionbudgets", "poddisruptionbudgets/status"],
    "discovery.k8s.io": ["endpointslices"],
}  # fmt: skip


def _rule(groups: list[str], resources: list[str], verbs: list[str]) -> JsonObject:
    return {"apiGroups": groups, "resources": resources, "verbs": verbs}


def _view() -> list[JsonObject]:
    return [_rule([""], _CORE_READ, _READ), *(_rule([group], names, _READ) for group, names in _WORKLOADS.items())]


def _edit() -> list[JsonObject]:
    plain = {
        group: [name for name in names if not name.endswith("/status")]
        for group, names in _WORKLOADS.items()
        if group != "discovery.k8s.io"
    }
    return [
        *_view(),
        _rule([""], ["secrets"], _READ),
        _rule([""], _CORE_WRITE, _WRITE),
        _rule([""], ["serviceaccounts/token", "pods/eviction"], ["create"]),
        _rule([""], ["serviceaccounts"], ["impersonate"]),
        *(_rule([group], names, _WRITE) for group, names in plain.items()),
        _rule(["coordination.k8s.io"], ["leases"], [*_READ, *_WRITE]),
    ]


def _admin() -> list[JsonObject]:
    return [
        *_edit(),
        _rule([_RBAC], ["roles", "rolebindings"], [*_READ, *_WRITE]),
        _rule(["authorization.k8s.io"], ["localsubjectaccessreviews"], ["create"]),
    ]


def _urls(*urls: str) -> JsonObject:
    return {"nonResourceURLs": list(urls), "verbs": ["get"]}


_DISCOVERY = _urls(
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
)


def cluster_roles() -> dict[str, list[JsonObject]]:
    """Return the rules of the cluster roles that every cluster has, by name."""
    everything = [_rule(["*"], ["*"], ["*"]), {"nonResourceURLs": ["*"], "verbs": ["*"]}]
    reviews = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]
    return {
        "cluster-admin": everything,
        "admin": _admin(),
        "edit": _edit(),
        "view": _view(),
        "system:discovery": [_DISCOVERY],
        "system:public-info-viewer": [_urls("/healthz", "/livez", "/readyz", "/version", "/version/")],
        "system:basic-user": [
            _rule(["authorization.k8s.io"], reviews, ["create"]),
            _rule(["authentication.k8s.io"], ["selfsubjectreviews"], ["create"]),
        ],
        "system:auth-delegator": [
            _rule(["authentication.k8s.io"], ["tokenreviews"], ["create"]),
            _rule(["authorization.k8s.io"], ["subjectaccessreviews"], ["create"]),
        ],
        "system:service-account-issuer-discovery": [
            _urls(
                "/.well-known/openid-configuration",
                "/.well-known/openid-configuration/",
                "/openid/v1/jwks",
                "/openid/v1/jwks/",
            )
        ],
    }


_BINDINGS = {
    "cluster-admin": ["system:masters"],
    "system:discovery": ["system:authenticated"],
    "system:basic-user": ["system:authenticated"],
    "system:public-info-viewer": ["system:authenticated", "system:unauthenticated"],
    "system:service-account-issuer-discovery": ["system:serviceaccounts"],
}


def _objects() -> list[tuple[str, str, JsonObject]]:
    found: list[tuple[str, str, JsonObject]] = [
        ("", "namespaces", {"metadata": {"name": name}}) for name in ("default", "kube-system", "kube-public")
    ]
    for name, rules in cluster_roles().items():
        found.append((_RBAC, "clusterroles", {"metadata": {"name": name, "labels": dict(_LABELS)}, "rules": rules}))
    for name, groups in _BINDINGS.items():
        subjects = [{"kind": "Group", "apiGroup": _RBAC, "name": group} for group in groups]
        reference = {"apiGroup": _RBAC, "kind": "ClusterRole", "name": name}
        found.append(
            (
                _RBAC,
                "clusterrolebindings",
                {"metadata": {"name": name, "labels": dict(_LABELS)}, "roleRef": reference, "subjects": subjects},
            )
        )
    for name, value in (("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)):
        found.append(("scheduling.k8s.io", "priorityclasses", {"metadata": {"name": name}, "value": value}))
    return found


def bootstrap(pipeline: RequestPipeline) -> None:
    """Create the missing objects. Changes by an administrator stay."""
    context = Context(User("system:apiserver", (MASTERS,)), "kube-apiserver")
    for group, plural, body in _objects():
        kind = pipeline.registry.find(group, "v1", plural)
        assert kind is not None
        if pipeline.store.get(kind.storage_key, "", body["metadata"]["name"]) is None:
            pipeline.create(Target(kind, None, ""), body, context)
