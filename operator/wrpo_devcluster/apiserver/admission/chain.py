"""Admission chain: namespace life cycle, service accounts, priorities, pod security, quotas, privilege escalation."""

from __future__ import annotations

from wrpo_devcluster.apiserver.admission import podsecurity
from wrpo_devcluster.apiserver.admission.limits import LimitRanges
from wrpo_devcluster.apiserver.admission.policies import Policies, Write
from wrpo_devcluster.apiserver.admission.quota import Quotas
from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import Context
from wrpo_devcluster.apiserver.auth.rbac import Authorizer
from wrpo_devcluster.apiserver.schema.kinds import Kind, Registry
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.objects import random_suffix

TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  (a path)
_PRIORITIES = {"system-node-critical": 2_000_001_000, "system-cluster-critical": 2_000_000_000}
CRDS = "apiextensions.k8s.io/customresourcedefinitions"
_TEMPLATES = {("apps", "Deployment"), ("apps", "ReplicaSet"), ("batch", "Job")}


class Admission:
    """Plugins in the server's order; each may change (mutate) or refuse (validate) a write."""

    def __init__(self, store: Store, registry: Registry, authorizer: Authorizer) -> None:
        self.store = store
        self.quotas = Quotas(store, registry)
        self.limits = LimitRanges(store)
        self.policies = Policies(store, registry)
        self.authorizer = authorizer

    def check_definition(self, kind: Kind, name: str) -> None:
        """Refuse a new object of a CRD that is being deleted."""
        if kind.custom is None:
            return
        record = self.store.get(CRDS, "", f"{kind.plural}.{kind.group}")
        if record is not None and record.obj["metadata"].get("deletionTimestamp"):
            why = "create not allowed while custom resource definition is terminating"
            raise errors.forbidden(kind.plural, kind.group, name, why)

    def check_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        """Refuse a new object in a namespace that is missing or being deleted."""
        if not kind.namespaced or kind.verbs == ("create",):
            return
        record = self.store.get("/namespaces", "", namespace)
        if record is None:
            raise errors.not_found("namespaces", "", namespace)
        if record.obj["metadata"].get("deletionTimestamp"):
            cause = errors.Cause(
                "NamespaceTerminating", "metadata.namespace", f"namespace {namespace} is being terminated"
            )
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise errors.forbidden(kind.plural, kind.group, name, why, causes=[cause])

    def mutate(self, kind: Kind, obj: JsonObject) -> None:
        """Change a new object in place."""
        if (kind.group, kind.kind) == ("", "Pod"):
            self._service_account(kind, obj)
            self._tolerations(obj["spec"])
            self._priority(kind, obj)
            self.limits.set_defaults(obj)
        elif (kind.group, kind.kind) == ("", "PersistentVolumeClaim"):
            self._storage_class(obj)

    def validate(
        self, kind: Kind, obj: JsonObject, old: JsonObject | None, context: Context, subresource: str = ""
    ) -> None:
        """Refuse, or warn, with the object as it would be stored."""
        if not subresource:
            if (kind.group, kind.kind) == ("", "Pod") and old is None:
                self._pod_security(kind, obj, context)
            elif (kind.group, kind.kind) in _TEMPLATES:
                self._warn_template(obj, context)
        self.policies.check(Write(kind, obj, old, subresource), context)
        if not subresource:
            self.limits.check(kind, obj, old)
            if old is None and kind.namespaced:
                self.quotas.check(kind, obj)
            if kind.group == "rbac.authorization.k8s.io":
                self.authorizer.check_escalation(kind, obj, old, context.user)

    def validate_deletion(self, kind: Kind, obj: JsonObject, context: Context) -> None:
        """Refuse, or warn about, the deletion of an object."""
        self.policies.check(Write(kind, None, obj), context)

    def _service_account(self, kind: Kind, pod: JsonObject) -> None:
        spec, namespace = pod["spec"], pod["metadata"]["namespace"]
        name = spec.get("serviceAccountName") or "default"
        spec["serviceAccountName"] = spec["serviceAccount"] = name
        record = self.store.get("/serviceaccounts", namespace, name)
        if record is None:
            why = f'error looking up service account {namespace}/{name}: serviceaccount "{name}" not found'
            raise errors.forbidden(kind.plural, kind.group, pod["metadata"].get("name", ""), why)
        account = record.obj
        if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
            spec["imagePullSecrets"] = account["imagePullSecrets"]
        wanted = spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
        if wanted:
            _mount_token(spec)

    @staticmethod
    def _tolerations(spec: JsonObject) -> None:
        """Add tolerations so that pods stay for five minutes on a node that is not ready or unreachable."""
        tolerations = list(spec.get("tolerations") or ())
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
            if not any(_tolerates(toleration, key) for toleration in tolerations):
                tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
        spec["tolerations"] = tolerations

    def _priority(self, kind: Kind, pod: JsonObject) -> None:
        spec = pod["spec"]
        name = spec.get("priorityClassName")
        value, policy = 0, "PreemptLowerPriority"
        if name in _PRIORITIES:
            value = _PRIORITIES[name]
        elif name:
            record = self.store.get("scheduling.k8s.io/priorityclasses", "", name)
            if record is None:
                why = f"no PriorityClass with name {name} was found"
                raise errors.forbidden(kind.plural, kind.group, pod["metadata"].get("name", ""), why)
            value = record.obj["value"]
            policy = record.obj.get("preemptionPolicy", policy)
        else:
            for record in self.store.list("scheduling.k8s.io/priorityclasses", None):
                if record.obj.get("globalDefault"):
                    spec["priorityClassName"] = record.obj["metadata"]["name"]
                    value, policy = record.obj["value"], record.obj.get("preemptionPolicy", policy)
        spec["priority"] = value
        spec.setdefault("preemptionPolicy", policy)

    def _storage_class(self, claim: JsonObject) -> None:
        if claim["spec"].get("storageClassName") is None:
            for record in self.store.list("storage.k8s.io/storageclasses", None):
                annotations = record.obj["metadata"].get("annotations") or {}
                if annotations.get("storageclass.kubernetes.io/is-default-class") == "true":
                    claim["spec"]["storageClassName"] = record.obj["metadata"]["name"]

    def _namespace_labels(self, namespace: str) -> dict[str, str]:
        record = self.store.get("/namespaces", "", namespace)
        return (record.obj["metadata"].get("labels") or {}) if record else {}

    def _pod_security(self, kind: Kind, pod: JsonObject, context: Context) -> None:
        labels = self._namespace_labels(pod["metadata"]["namespace"])
        enforced = labels.get(podsecurity.ENFORCE, "privileged")
        violations = podsecurity.violations(enforced, pod["spec"], pod["metadata"])
        if violations:
            version = labels.get(f"{podsecurity.ENFORCE}-version", "latest")
            why = f'violates PodSecurity "{enforced}:{version}": {", ".join(violations)}'
            raise errors.forbidden(kind.plural, kind.group, pod["metadata"].get("name", ""), why)
        self._warn(labels, pod["spec"], pod["metadata"], context)

    def _warn_template(self, obj: JsonObject, context: Context) -> None:
        template = obj["spec"].get("template") or {}
        labels = self._namespace_labels(obj["metadata"]["namespace"])
        self._warn(labels, template.get("spec") or {}, template.get("metadata") or {}, context)

    @staticmethod
    def _warn(labels: dict[str, str], spec: JsonObject, meta: JsonObject, context: Context) -> None:
        level = labels.get(podsecurity.WARN, "privileged")
        violations = podsecurity.violations(level, spec, meta)
        if violations:
            version = labels.get(f"{podsecurity.WARN}-version", "latest")
            context.warn(f'would violate PodSecurity "{level}:{version}": {", ".join(violations)}')


def _tolerates(toleration: JsonObject, key: str) -> bool:
    return toleration.get("key") in {key, None} and toleration.get("effect") in {"NoExecute", None}


def _mount_token(spec: JsonObject) -> None:
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    needing = [
        container
        for container in containers
        if all(mount.get("mountPath") != TOKEN_PATH for mount in container.get("volumeMounts") or ())
    ]
    if not needing:
        return
    volume = "kube-api-access-" + random_suffix()
    for container in needing:
        mount = {"name": volume, "readOnly": True, "mountPath": TOKEN_PATH}
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {
            "downwardAPI": {
                "items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]
            }
        },
    ]
    spec["volumes"] = [
        *(spec.get("volumes") or ()),
        {"name": volume, "projected": {"sources": sources, "defaultMode": 420}},
    ]
