"""Table cells of built-in kinds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from wrpo_devcluster.apiserver.printers.pods import pod_row
from wrpo_devcluster.apiserver.printers.rows import NONE, Row, age, human_age, human_duration, parse, status_of
from wrpo_devcluster.client import JsonObject


def _selector(selector: JsonObject | None) -> str:
    if not selector:
        return NONE
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or ():
        operator = expression["operator"]
        if operator == "Exists":
            parts.append(expression["key"])
        elif operator == "DoesNotExist":
            parts.append(f"!{expression['key']}")
        else:
            values = ",".join(sorted(expression.get("values") or ()))
            parts.append(f"{expression['key']} {operator.lower()} ({values})")
    return ",".join(parts) or NONE


def _containers(template: JsonObject) -> tuple[str, str]:
    containers = (template.get("spec") or {}).get("containers") or ()
    return ",".join(c.get("name", "") for c in containers), ",".join(c.get("image", "") for c in containers)


def _job(obj: JsonObject, now: datetime) -> Row:
    spec, status = obj["spec"], status_of(obj)
    true = {c["type"] for c in status.get("conditions") or () if c.get("status") == "True"}
    state = "Running"
    if "Complete" in true:
        state = "Complete"
    elif "Failed" in true:
        state = "Failed"
    elif obj["metadata"].get("deletionTimestamp"):
        state = "Terminating"
    elif "Suspended" in true:
        state = "Suspended"
    elif "FailureTarget" in true:
        state = "FailureTarget"
    elif "SuccessCriteriaMet" in true:
        state = "SuccessCriteriaMet"
    succeeded = status.get("succeeded", 0)
    if spec.get("completions") is not None:
        completions = f"{succeeded}/{spec['completions']}"
    else:
        parallelism = spec.get("parallelism", 0)
        completions = f"{succeeded}/1 of {parallelism}" if parallelism > 1 else f"{succeeded}/1"
    names, images = _containers(spec["template"])
    return Row(
        [state, completions, _duration(status, now), age(obj, now), names, images, _selector(spec.get("selector"))]
    )


def _duration(status: JsonObject, now: datetime) -> str:
    start = parse(status.get("startTime"))
    if start is None:
        return ""
    end = parse(status.get("completionTime"))
    if end is None:
        ends = [
            parse(c.get("lastTransitionTime"))
            for c in status.get("conditions") or ()
            if c.get("type") == "Failed" and c.get("status") == "True"
        ]
        end = next((moment for moment in ends if moment is not None), None)
    return human_duration(((end or now) - start).total_seconds())


def _cron_job(obj: JsonObject, now: datetime) -> Row:
    spec, status = obj["spec"], status_of(obj)
    last = human_age(status["lastScheduleTime"], now) if status.get("lastScheduleTime") else NONE
    zone = spec.get("timeZone") or NONE
    return Row(
        [
            spec.get("schedule"),
            zone,
            str(spec.get("suspend", False)),
            len(status.get("active") or ()),
            last,
            age(obj, now),
        ]
    )


def _deployment(obj: JsonObject, now: datetime) -> Row:
    spec, status = obj["spec"], status_of(obj)
    ready = f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 1)}"
    names, images = _containers(spec["template"])
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    return Row([ready, updated, available, age(obj, now), names, images, _selector(spec.get("selector"))])


def _replica_set(obj: JsonObject, now: datetime) -> Row:
    spec, status = obj["spec"], status_of(obj)
    names, images = _containers(spec.get("template") or {})
    counts = [spec.get("replicas", 1), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return Row([*counts, age(obj, now), names, images, _selector(spec.get("selector"))])


def _service(obj: JsonObject, now: datetime) -> Row:
    spec = obj["spec"]
    ports = ",".join(
        f"{p['port']}:{p['nodePort']}/{p['protocol']}" if p.get("nodePort") else f"{p['port']}/{p['protocol']}"
        for p in spec.get("ports") or ()
    )
    external = spec.get("externalName") or ",".join(spec.get("externalIPs") or ()) or NONE
    if spec.get("type") == "LoadBalancer" and external == NONE:
        external = "<pending>"
    selector = ",".join(f"{k}={v}" for k, v in sorted((spec.get("selector") or {}).items())) or NONE
    return Row([spec.get("type"), spec.get("clusterIP") or NONE, external, ports or NONE, age(obj, now), selector])


def _data(obj: JsonObject) -> int:
    return len(obj.get("data") or ()) + len(obj.get("binaryData") or ())


def _node(obj: JsonObject, now: datetime) -> Row:
    status = status_of(obj)
    ready = next((c.get("status") for c in status.get("conditions") or () if c.get("type") == "Ready"), None)
    state = {"True": "Ready", "False": "NotReady"}.get(str(ready), "Unknown")
    if obj["spec"].get("unschedulable"):
        state += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    roles = sorted(k.removeprefix(prefix) for k in obj["metadata"].get("labels") or {} if k.startswith(prefix))
    address = next((a["address"] for a in status.get("addresses") or () if a.get("type") == "InternalIP"), NONE)
    version = (status.get("nodeInfo") or {}).get("kubeletVersion", "")
    return Row([state, ",".join(roles) or NONE, age(obj, now), version, address])


def _event(obj: JsonObject, now: datetime) -> Row:
    series, source = obj.get("series"), obj.get("source") or {}
    first = obj.get("firstTimestamp") or obj.get("eventTime")
    last = (series or {}).get("lastObservedTime") or obj.get("lastTimestamp") or first
    target = obj.get("involvedObject") or {}
    component = source.get("component") or obj.get("reportingComponent")
    shown = ", ".join(filter(None, (component, source.get("host") or obj.get("reportingInstance"))))
    count = series.get("count", 0) if series is not None else obj.get("count") or 1
    return Row(
        [
            human_age(last, now), obj.get("type", ""), obj.get("reason", ""),
            "/".join(filter(None, (target.get("kind", "").lower(), target.get("name")))), target.get("fieldPath", ""),
            shown, (obj.get("message") or "").strip(), human_age(first, now), count, obj["metadata"]["name"],
        ]
    )  # fmt: skip


_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def _modes(modes: list[str] | None) -> str:
    return ",".join(_MODES.get(mode, mode) for mode in modes or ())


def _claim(obj: JsonObject, now: datetime) -> Row:
    spec, status = obj["spec"], status_of(obj)
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    bound = bool(spec.get("volumeName"))
    capacity = (status.get("capacity") or {}).get("storage", "") if bound else ""
    modes = _modes(status.get("accessModes")) if bound else ""
    return Row(
        [
            phase,
            spec.get("volumeName", ""),
            capacity,
            modes,
            spec.get("storageClassName", ""),
            age(obj, now),
            spec.get("volumeMode", ""),
        ]
    )


def _volume(obj: JsonObject, now: datetime) -> Row:
    spec, status = obj["spec"], status_of(obj)
    claim = spec.get("claimRef") or {}
    bound = f"{claim['namespace']}/{claim['name']}" if claim else ""
    return Row(
        [
            (spec.get("capacity") or {}).get("storage", ""), _modes(spec.get("accessModes")),
            spec.get("persistentVolumeReclaimPolicy"), status.get("phase"), bound, spec.get("storageClassName", ""),
            status.get("reason", ""), age(obj, now),
        ]
    )  # fmt: skip


def _endpoints(obj: JsonObject, now: datetime) -> Row:
    shown = [
        f"{address['ip']}:{port['port']}"
        for subset in obj.get("subsets") or ()
        for address in subset.get("addresses") or ()
        for port in subset.get("ports") or ()
    ]
    more = f" + {len(shown) - 3} more..." if len(shown) > 3 else ""
    return Row([(",".join(shown[:3]) + more) or NONE, age(obj, now)])


def _binding(obj: JsonObject, now: datetime) -> Row:
    reference = obj.get("roleRef") or {}
    by_kind: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for subject in obj.get("subjects") or ():
        name = (
            f"{subject.get('namespace', '')}/{subject['name']}"
            if subject["kind"] == "ServiceAccount"
            else subject["name"]
        )
        by_kind.setdefault(subject["kind"], []).append(name)
    people = [", ".join(by_kind[kind]) for kind in ("User", "Group", "ServiceAccount")]
    return Row([f"{reference.get('kind')}/{reference.get('name')}", age(obj, now), *people])


def _created(obj: JsonObject, _now: datetime) -> Row:
    return Row([obj["metadata"].get("creationTimestamp")])


def _budget(obj: JsonObject, now: datetime) -> Row:
    spec = obj["spec"]
    least = spec.get("minAvailable", "N/A")
    most = spec.get("maxUnavailable", "N/A")
    return Row([str(least), str(most), status_of(obj).get("disruptionsAllowed", 0), age(obj, now)])


ROWS: dict[tuple[str, str], Callable[[JsonObject, datetime], Row]] = {
    ("", "Pod"): pod_row,
    ("batch", "Job"): _job,
    ("batch", "CronJob"): _cron_job,
    ("apps", "Deployment"): _deployment,
    ("apps", "ReplicaSet"): _replica_set,
    ("", "Service"): _service,
    ("", "ConfigMap"): lambda obj, now: Row([_data(obj), age(obj, now)]),
    ("", "Secret"): lambda obj, now: Row([obj.get("type", ""), _data(obj), age(obj, now)]),
    ("", "ServiceAccount"): lambda obj, now: Row([len(obj.get("secrets") or ()), age(obj, now)]),
    ("", "Namespace"): lambda obj, now: Row([status_of(obj).get("phase", ""), age(obj, now)]),
    ("", "Node"): _node,
    ("", "Event"): _event,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "PersistentVolume"): _volume,
    ("", "Endpoints"): _endpoints,
    ("coordination.k8s.io", "Lease"): lambda obj, now: Row([obj["spec"].get("holderIdentity", ""), age(obj, now)]),
    ("rbac.authorization.k8s.io", "Role"): _created,
    ("rbac.authorization.k8s.io", "ClusterRole"): _created,
    ("rbac.authorization.k8s.io", "RoleBinding"): _binding,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _binding,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _created,
    ("networking.k8s.io", "NetworkPolicy"): lambda obj, now: Row(
        [_selector(obj["spec"].get("podSelector")), age(obj, now)]
    ),
    ("policy", "PodDisruptionBudget"): _budget,
    ("scheduling.k8s.io", "PriorityClass"): lambda obj, now: Row(
        [obj.get("value", 0), bool(obj.get("globalDefault")), age(obj, now), obj.get("preemptionPolicy", "")]
    ),
    ("storage.k8s.io", "StorageClass"): lambda obj, now: Row(
        [obj.get("provisioner"), obj.get("reclaimPolicy"), obj.get("volumeBindingMode"), age(obj, now)]
    ),
}
