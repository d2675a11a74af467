"""Defaults of built-in kinds, as the server sets them while decoding a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wrpo_devcluster.client import JsonObject

_VOLUME_MODES = ("secret", "configMap", "downwardAPI", "projected")


def _set(target: JsonObject, **values: Any) -> None:
    for name, value in values.items():
        if target.get(name) in (None, ""):
            target[name] = value


def _probe(probe: JsonObject | None) -> None:
    if probe is None:
        return
    _set(probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
    _http_get(probe)
    if "grpc" in probe:
        _set(probe["grpc"], service="")


def _http_get(handler: JsonObject) -> None:
    if "httpGet" in handler:
        _set(handler["httpGet"], path="/", scheme="HTTP")


def _field_refs(container: JsonObject) -> None:
    for variable in container.get("env") or ():
        source = variable.get("valueFrom") or {}
        if "fieldRef" in source:
            _set(source["fieldRef"], apiVersion="v1")


def _container(container: JsonObject) -> None:
    image = container.get("image", "")
    tag = image.rsplit("/", 1)[-1].partition("@")[0].partition(":")[2]
    floating = "@" not in image and tag in {"", "latest"}
    _set(
        container,
        resources={},
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
        imagePullPolicy="Always" if floating else "IfNotPresent",
    )
    for port in container.get("ports") or ():
        _set(port, protocol="TCP")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        _probe(container.get(probe))
    for hook in (container.get("lifecycle") or {}).values():
        if isinstance(hook, dict):
            _http_get(hook)
    _field_refs(container)


def _volume(volume: JsonObject) -> None:
    if set(volume) <= {"name"}:
        volume["emptyDir"] = {}
    for kind in _VOLUME_MODES:
        if isinstance(volume.get(kind), dict):
            _set(volume[kind], defaultMode=420)
    if "hostPath" in volume:
        _set(volume["hostPath"], type="")
    items = list((volume.get("downwardAPI") or {}).get("items") or ())
    for source in (volume.get("projected") or {}).get("sources") or ():
        if "serviceAccountToken" in source:
            _set(source["serviceAccountToken"], expirationSeconds=3600)
        items += (source.get("downwardAPI") or {}).get("items") or ()
    for item in items:
        if "fieldRef" in item:
            _set(item["fieldRef"], apiVersion="v1")
    if "ephemeral" in volume:
        claim_spec((volume["ephemeral"].get("volumeClaimTemplate") or {}).get("spec") or {})


def pod_spec(spec: JsonObject) -> None:
    """Set the defaults that pods and pod templates share."""
    _set(
        spec,
        restartPolicy="Always",
        terminationGracePeriodSeconds=30,
        dnsPolicy="ClusterFirst",
        securityContext={},
        schedulerName="default-scheduler",
    )
    if spec.get("serviceAccountName") or spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"] = spec.get("serviceAccountName") or spec["serviceAccount"]
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(group) or ():
            _container(container)
    for volume in spec.get("volumes") or ():
        _volume(volume)


def pod(obj: JsonObject) -> None:
    """Set the defaults of a pod; a missing request becomes equal to its limit."""
    spec = obj["spec"]
    pod_spec(spec)
    _set(spec, enableServiceLinks=True)
    for group in ("initContainers", "containers"):
        for container in spec.get(group) or ():
            limits = container["resources"].get("limits")
            if limits:
                container["resources"]["requests"] = {**limits, **(container["resources"].get("requests") or {})}


def _template(spec: JsonObject) -> None:
    template = spec.get("template")
    if isinstance(template, dict) and isinstance(template.get("spec"), dict):
        pod_spec(template["spec"])


def job_spec(spec: JsonObject) -> None:
    """Set the defaults that depend on which counts and limits of a Job are set."""
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    _set(
        spec,
        parallelism=1,
        backoffLimit=2**31 - 1 if spec.get("backoffLimitPerIndex") is not None else 6,
        completionMode="NonIndexed",
        suspend=False,
        manualSelector=False,
        podReplacementPolicy="Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed",
    )


def _job_template(spec: JsonObject) -> None:
    _template(spec)
    for rule in (spec.get("podFailurePolicy") or {}).get("rules") or ():
        for condition in rule.get("onPodConditions") or ():
            _set(condition, status="True")


def job(obj: JsonObject) -> None:
    """Set the defaults of a Job and of its template."""
    job_spec(obj["spec"])
    _job_template(obj["spec"])


def cron_job(obj: JsonObject) -> None:
    """Set the defaults of a CronJob and of its template."""
    spec = obj["spec"]
    _set(spec, concurrencyPolicy="Allow", suspend=False, successfulJobsHistoryLimit=3, failedJobsHistoryLimit=1)
    _job_template((spec.get("jobTemplate") or {}).get("spec") or {})


def deployment(obj: JsonObject) -> None:
    """Set the defaults of a Deployment: among others, a rolling update by quarters."""
    spec = obj["spec"]
    _set(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    strategy = spec.setdefault("strategy", {})
    _set(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        _set(strategy, rollingUpdate={})
        _set(strategy["rollingUpdate"], maxUnavailable="25%", maxSurge="25%")
    _template(spec)


def replica_set(obj: JsonObject) -> None:
    """Set the defaults of a ReplicaSet, which takes its template's labels if it has none."""
    _set(obj["spec"], replicas=1)
    _template(obj["spec"])
    if not obj["metadata"].get("labels"):
        labels = ((obj["spec"].get("template") or {}).get("metadata") or {}).get("labels")
        if labels:
            obj["metadata"]["labels"] = dict(labels)


def service(obj: JsonObject) -> None:
    """Set the defaults of a Service, which depend on its type."""
    spec = obj["spec"]
    _set(spec, sessionAffinity="None", type="ClusterIP")
    if spec["type"] != "ExternalName":
        _set(spec, internalTrafficPolicy="Cluster")
    if spec["type"] in {"NodePort", "LoadBalancer"}:
        _set(spec, externalTrafficPolicy="Cluster")
    if spec["type"] == "LoadBalancer":
        _set(spec, allocateLoadBalancerNodePorts=True)
    for port in spec.get("ports") or ():
        _set(port, protocol="TCP")
        if port.get("targetPort") in {None, 0, ""}:
            port["targetPort"] = port.get("port")


def secret(obj: JsonObject) -> None:
    """Set the type Opaque."""
    _set(obj, type="Opaque")


def claim_spec(spec: JsonObject) -> None:
    """Set the defaults that claims and ephemeral volumes share."""
    _set(spec, volumeMode="Filesystem")


def claim(obj: JsonObject) -> None:
    """Set the defaults of a claim, which starts as Pending."""
    claim_spec(obj["spec"])
    _set(obj["status"], phase="Pending")


def volume(obj: JsonObject) -> None:
    """Set the defaults of a persistent volume, which starts as Pending and is retained."""
    _set(obj["spec"], persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")
    _set(obj["status"], phase="Pending")


def namespace(obj: JsonObject) -> None:
    """Set the label with a namespace's own name, and the phase Active."""
    meta = obj["metadata"]
    if meta.get("name"):
        meta["labels"] = {**(meta.get("labels") or {}), "kubernetes.io/metadata.name": meta["name"]}
    _set(obj["status"], phase="Active")


def role_binding(obj: JsonObject) -> None:
    """Set the group of the role, and of subjects that are users or groups."""
    reference = obj.get("roleRef") or {}
    if not reference.get("apiGroup"):
        reference["apiGroup"] = "rbac.authorization.k8s.io"
    for subject in obj.get("subjects") or ():
        if subject.get("kind") in {"User", "Group"}:
            _set(subject, apiGroup="rbac.authorization.k8s.io")


def network_policy(obj: JsonObject) -> None:
    """Set the types of a policy by the rules that it has, and the protocol TCP."""
    spec = obj["spec"]
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress"] + (["Egress"] if spec.get("egress") else [])
    for rule in (*(spec.get("ingress") or ()), *(spec.get("egress") or ())):
        for port in rule.get("ports") or ():
            _set(port, protocol="TCP")


def priority_class(obj: JsonObject) -> None:
    """Allow the preemption of pods with a lower priority."""
    _set(obj, preemptionPolicy="PreemptLowerPriority")


def storage_class(obj: JsonObject) -> None:
    """Set the defaults of a class: its volumes are deleted with their claims, and bound at once."""
    _set(obj, reclaimPolicy="Delete", volumeBindingMode="Immediate")


def custom_resource_definition(obj: JsonObject) -> None:
    """Derive the names that are missing, and set the conversion None."""
    spec = obj["spec"]
    names = spec.get("names") or {}
    if not names.get("singular"):
        names["singular"] = names.get("kind", "").lower()
    if not names.get("listKind") and names.get("kind"):
        names["listKind"] = f"{names['kind']}List"
    _set(spec, conversion={"strategy": "None"})


def endpoint_slice(obj: JsonObject) -> None:
    """Set an empty name and the protocol TCP of each port."""
    for port in obj.get("ports") or ():
        _set(port, name="", protocol="TCP")


def admission_policy(obj: JsonObject) -> None:
    """Set the defaults of a policy: a rule that cannot be evaluated refuses the request."""
    spec = obj["spec"]
    _set(spec, failurePolicy="Fail")
    _match_resources(spec.get("matchConstraints"))


def admission_binding(obj: JsonObject) -> None:
    """Set the defaults of the resources that a binding matches."""
    _match_resources(obj["spec"].get("matchResources"))


def _match_resources(match: JsonObject | None) -> None:
    if match is None:
        return
    _set(match, matchPolicy="Equivalent", namespaceSelector={}, objectSelector={})
    for rule in (*(match.get("resourceRules") or ()), *(match.get("excludeResourceRules") or ())):
        _set(rule, scope="*")


def token_request(obj: JsonObject) -> None:
    """Set a lifetime of one hour."""
    _set(obj["spec"], expirationSeconds=3600)


def limit_range(obj: JsonObject) -> None:
    """Set container defaults: `default` from `max`, then `defaultRequest` from `default` or else `min`."""
    for limit in obj["spec"].get("limits") or ():
        if limit.get("type") == "Container":
            limits = {**(limit.get("max") or {}), **(limit.get("default") or {})}
            requests = {**(limit.get("min") or {}), **limits, **(limit.get("defaultRequest") or {})}
            for name, amounts in (("default", limits), ("defaultRequest", requests)):
                if amounts:
                    limit[name] = amounts


Default = Callable[[JsonObject], None]
SPEC_DEFAULTS: dict[tuple[str, str], Default] = {
    ("", "Pod"): pod,
    ("", "Service"): service,
    ("", "LimitRange"): limit_range,
    ("apps", "Deployment"): deployment,
    ("batch", "Job"): job,
    ("batch", "CronJob"): cron_job,
    ("networking.k8s.io", "NetworkPolicy"): network_policy,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): custom_resource_definition,
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"): admission_policy,
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"): admission_binding,
    ("authentication.k8s.io", "TokenRequest"): token_request,
}
"""Defaults of kinds whose defaults read and write only the spec."""
DEFAULTS: dict[tuple[str, str], Default] = {
    ("", "Secret"): secret,
    ("", "PersistentVolumeClaim"): claim,
    ("", "PersistentVolume"): volume,
    ("", "Namespace"): namespace,
    ("apps", "ReplicaSet"): replica_set,
    ("rbac.authorization.k8s.io", "RoleBinding"): role_binding,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): role_binding,
    ("scheduling.k8s.io", "PriorityClass"): priority_class,
    ("storage.k8s.io", "StorageClass"): storage_class,
    ("discovery.k8s.io", "EndpointSlice"): endpoint_slice,
}
"""Defaults of all other kinds that have some."""
