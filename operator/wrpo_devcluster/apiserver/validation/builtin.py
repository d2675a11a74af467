"""Validation of built-in kinds beyond their JSON types."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    duplicate_field,
    forbidden_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.schema.typed import same
from wrpo_devcluster.apiserver.storage.selectors import from_label_selector
from wrpo_devcluster.apiserver.validation import crd
from wrpo_devcluster.apiserver.validation.data import validate_config_map, validate_secret
from wrpo_devcluster.apiserver.validation.event import validate_event, validate_event_update
from wrpo_devcluster.apiserver.validation.job import validate_job, validate_job_update
from wrpo_devcluster.apiserver.validation.limits import validate_budget, validate_limit_range, validate_quota
from wrpo_devcluster.apiserver.validation.metadata import labels
from wrpo_devcluster.apiserver.validation.pod import pod_spec
from wrpo_devcluster.apiserver.validation.policy import validate_policy, validate_policy_binding
from wrpo_devcluster.client import JsonObject

_EXTENSIONS = ("apiextensions.k8s.io", "CustomResourceDefinition")


def _schema_required(kind: Kind, obj: JsonObject) -> list[Cause]:
    """Return the required fields of kinds that have no rules here."""
    spec_node = kind.node.properties.get("spec")
    spec = obj.get("spec")
    if spec_node is None or not isinstance(spec, dict):
        return []
    return [required_field(f"spec.{name}") for name in spec_node.required if spec.get(name) is None]


def _pod(obj: JsonObject) -> list[Cause]:
    return pod_spec(obj["spec"], "spec")


def _template(spec: JsonObject, restart: tuple[str, ...]) -> list[Cause]:
    template = spec["template"]
    causes = labels((template.get("metadata") or {}).get("labels") or {}, "spec.template.labels")
    causes += pod_spec(template["spec"], "spec.template.spec")
    if template["spec"].get("restartPolicy") not in restart:
        causes.append(
            unsupported_field("spec.template.spec.restartPolicy", template["spec"].get("restartPolicy"), restart)
        )
    return causes


def _workload(obj: JsonObject) -> list[Cause]:
    spec = obj["spec"]
    causes: list[Cause] = []
    selector = spec.get("selector")
    template_labels = (spec["template"].get("metadata") or {}).get("labels") or {}
    if selector is None:
        causes.append(required_field("spec.selector"))
    elif not selector:
        causes.append(invalid_field("spec.selector", selector, "empty selector is invalid for deployment"))
    elif not all(part.matches(template_labels) for part in from_label_selector(selector)):
        causes.append(
            invalid_field(
                "spec.template.metadata.labels", template_labels, "`selector` does not match template `labels`"
            )
        )
    if (spec.get("replicas") or 0) < 0:
        causes.append(invalid_field("spec.replicas", spec["replicas"], "must be greater than or equal to 0"))
    return causes + _template(spec, ("Always",))


def _workload_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    if same(new["spec"].get("selector"), old["spec"].get("selector")):
        return []
    return [invalid_field("spec.selector", new["spec"].get("selector"), "field is immutable")]


def _service(obj: JsonObject) -> list[Cause]:
    spec = obj["spec"]
    causes: list[Cause] = []
    causes += labels(spec.get("selector") or {}, "spec.selector")
    ports = spec.get("ports") or ()
    kind = spec.get("type")
    if kind not in {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}:
        causes.append(unsupported_field("spec.type", kind, ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")))
    if not ports and kind != "ExternalName" and spec.get("clusterIP") != "None":
        causes.append(required_field("spec.ports"))
    if kind == "ExternalName" and not spec.get("externalName"):
        causes.append(required_field("spec.externalName"))
    names: set[str] = set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        if not 1 <= (port.get("port") or 0) <= 65535:
            causes.append(invalid_field(f"{path}.port", port.get("port", 0), "must be between 1 and 65535, inclusive"))
        if len(ports) > 1 and not port.get("name"):
            causes.append(required_field(f"{path}.name"))
        if port.get("name"):
            if port["name"] in names:
                causes.append(duplicate_field(f"{path}.name", port["name"]))
            names.add(port["name"])
        if port.get("protocol") not in {"TCP", "UDP", "SCTP"}:
            causes.append(unsupported_field(f"{path}.protocol", port.get("protocol"), ("SCTP", "TCP", "UDP")))
    return causes


def _service_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    before, after = old["spec"].get("clusterIP"), new["spec"].get("clusterIP")
    if before and after != before and "ExternalName" not in {new["spec"].get("type"), old["spec"].get("type")}:
        return [
            invalid_field("spec.clusterIPs[0]", after, "may not change once set"),
        ]
    return []


def _immutable_data(new: JsonObject, old: JsonObject) -> list[Cause]:
    causes: list[Cause] = []
    if old.get("immutable"):
        if not new.get("immutable"):
            causes.append(forbidden_field("immutable", "field is immutable when `immutable` is set"))
        causes += [
            forbidden_field(name, "field is immutable when `immutable` is set")
            for name in ("data", "binaryData")
            if not same(new.get(name), old.get(name))
        ]
    return causes


def _secret_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    causes = _immutable_data(new, old)
    if new.get("type") != old.get("type"):
        causes.append(invalid_field("type", new.get("type"), "field is immutable"))
    return causes


def _pod_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    """Return the faults of a pod's change. Only images, deadlines, tolerations and gates of its spec may change."""

    def frozen(spec: JsonObject) -> JsonObject:
        kept = {
            key: value
            for key, value in spec.items()
            if key not in {"activeDeadlineSeconds", "tolerations", "schedulingGates", "terminationGracePeriodSeconds"}
        }
        for group in ("containers", "initContainers"):
            kept[group] = [{**container, "image": ""} for container in spec.get(group) or ()]
        if not old["spec"].get("nodeName"):
            kept.pop("nodeSelector", None)
            kept.pop("affinity", None)
        return kept

    if same(frozen(new["spec"]), frozen(old["spec"])):
        return []
    why = (
        "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
        "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
        "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
    )
    return [forbidden_field("spec", why)]


def _role(obj: JsonObject) -> list[Cause]:
    causes: list[Cause] = []
    for index, rule in enumerate(obj.get("rules") or ()):
        path = f"rules[{index}]"
        if not rule.get("verbs"):
            causes.append(required_field(f"{path}.verbs", "verbs must contain at least one value"))
        if rule.get("nonResourceURLs"):
            if obj.get("kind") == "Role":
                why = "namespaced rules cannot apply to non-resource URLs"
                causes.append(invalid_field(f"{path}.nonResourceURLs", rule["nonResourceURLs"], why))
        else:
            if not rule.get("apiGroups"):
                causes.append(required_field(f"{path}.apiGroups", "resource rules must supply at least one api group"))
            if not rule.get("resources"):
                causes.append(required_field(f"{path}.resources", "resource rules must supply at least one resource"))
    return causes


def _binding(obj: JsonObject) -> list[Cause]:
    causes: list[Cause] = []
    reference = obj.get("roleRef") or {}
    allowed = ("ClusterRole",) if obj.get("kind") == "ClusterRoleBinding" else ("ClusterRole", "Role")
    if reference.get("kind") not in allowed:
        causes.append(unsupported_field("roleRef.kind", reference.get("kind", ""), allowed))
    if not reference.get("name"):
        causes.append(required_field("roleRef.name"))
    for index, subject in enumerate(obj.get("subjects") or ()):
        path = f"subjects[{index}]"
        if subject.get("kind") not in {"ServiceAccount", "User", "Group"}:
            causes.append(
                unsupported_field(f"{path}.kind", subject.get("kind", ""), ("ServiceAccount", "User", "Group"))
            )
        elif subject["kind"] == "ServiceAccount" and not subject.get("namespace"):
            causes.append(required_field(f"{path}.namespace"))
        if not subject.get("name"):
            causes.append(required_field(f"{path}.name"))
    return causes


def _binding_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    if same(new.get("roleRef"), old.get("roleRef")):
        return []
    return [invalid_field("roleRef", new.get("roleRef"), "cannot change roleRef")]


def _claim(obj: JsonObject) -> list[Cause]:
    spec = obj["spec"]
    causes: list[Cause] = []
    if not spec.get("accessModes"):
        causes.append(required_field("spec.accessModes", "at least 1 access mode is required"))
    if "storage" not in ((spec.get("resources") or {}).get("requests") or {}):
        causes.append(required_field("spec.resources[storage]"))
    return causes


def _claim_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    def frozen(spec: JsonObject) -> JsonObject:
        mutable = {"resources", "volumeName", "volumeAttributesClassName"}
        return {key: value for key, value in spec.items() if key not in mutable}

    if same(frozen(new["spec"]), frozen(old["spec"])):
        return []
    return [
        forbidden_field(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        )
    ]


def _lease(obj: JsonObject) -> list[Cause]:
    spec = obj["spec"]
    return [
        invalid_field(f"spec.{name}", spec[name], "must be greater than 0")
        for name in ("leaseDurationSeconds",)
        if spec.get(name) is not None and spec[name] <= 0
    ]


def _cron_job(obj: JsonObject) -> list[Cause]:
    spec = obj["spec"]
    causes: list[Cause] = []
    schedule = spec.get("schedule", "")
    if not schedule:
        causes.append(required_field("spec.schedule"))
    elif not schedule.startswith("@") and len(schedule.split()) != 5:
        why = f"expected exactly 5 fields, found {len(schedule.split())}: [{schedule}]"
        causes.append(invalid_field("spec.schedule", schedule, why))
    if spec.get("concurrencyPolicy") not in {"Allow", "Forbid", "Replace"}:
        causes.append(
            unsupported_field("spec.concurrencyPolicy", spec.get("concurrencyPolicy"), ("Allow", "Forbid", "Replace"))
        )
    template = spec["jobTemplate"]["spec"]["template"]["spec"]
    return causes + pod_spec(template, "spec.jobTemplate.spec.template.spec")


_CREATE: dict[tuple[str, str], Callable[[JsonObject], list[Cause]]] = {
    ("", "Pod"): _pod,
    ("batch", "Job"): validate_job,
    ("batch", "CronJob"): _cron_job,
    ("apps", "Deployment"): _workload,
    ("apps", "ReplicaSet"): _workload,
    ("", "Service"): _service,
    ("", "ConfigMap"): validate_config_map,
    ("", "Secret"): validate_secret,
    ("", "Event"): partial(validate_event, is_new_form=False),
    ("", "LimitRange"): validate_limit_range,
    ("", "ResourceQuota"): validate_quota,
    ("policy", "PodDisruptionBudget"): validate_budget,
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"): validate_policy,
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"): validate_policy_binding,
    ("", "PersistentVolumeClaim"): _claim,
    ("coordination.k8s.io", "Lease"): _lease,
    ("rbac.authorization.k8s.io", "Role"): _role,
    ("rbac.authorization.k8s.io", "ClusterRole"): _role,
    ("rbac.authorization.k8s.io", "RoleBinding"): _binding,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _binding,
    _EXTENSIONS: crd.validate,
}
_UPDATE: dict[tuple[str, str], Callable[[JsonObject, JsonObject], list[Cause]]] = {
    ("", "Pod"): _pod_update,
    ("batch", "Job"): validate_job_update,
    ("apps", "Deployment"): _workload_update,
    ("apps", "ReplicaSet"): _workload_update,
    ("", "Service"): _service_update,
    ("", "ConfigMap"): _immutable_data,
    ("", "Secret"): _secret_update,
    ("", "Event"): partial(validate_event_update, is_new_form=False),
    ("", "PersistentVolumeClaim"): _claim_update,
    ("rbac.authorization.k8s.io", "RoleBinding"): _binding_update,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _binding_update,
    _EXTENSIONS: crd.validate_update,
}
_OF_THE_SPEC = frozenset(
    {
        ("", "Pod"), ("batch", "Job"), ("batch", "CronJob"), ("apps", "Deployment"), ("apps", "ReplicaSet"),
        ("", "Service"), ("", "PersistentVolumeClaim"), ("coordination.k8s.io", "Lease"),
    }
)  # fmt: skip
"""Kinds whose rules find no fault in a change that does not change the spec."""


def validate(kind: Kind, obj: JsonObject, old: JsonObject | None = None) -> list[Cause]:
    """Return the faults of a new object, or of a change from `old`, which was valid when it was stored."""
    key = (kind.group, kind.kind)
    if old is not None and key in _OF_THE_SPEC and same(obj.get("spec"), old.get("spec")):
        return []
    check: Any = _CREATE.get(key)
    causes: list[Cause] = check(obj) if check is not None else _schema_required(kind, obj)
    if old is not None and key in _UPDATE:
        causes += _UPDATE[key](obj, old)
    return causes
