"""Helpers for Kubernetes objects: owners, conditions, selectors, resource names."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from datetime import datetime

from wrpo_devcluster.client import JsonObject, Resource
from wrpo_devcluster.clock import parse_time, timestamp

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Letters of generated names, without vowels so that they form no words."""

_RANDOM = random.Random()  # noqa: S311  (names, not secrets)


def key_of(obj: JsonObject) -> str:
    """Return the key of an object. A cluster-scoped object has an empty namespace."""
    meta = obj["metadata"]
    return f"{meta.get('namespace', '')}/{meta['name']}"


def split_key(key: str) -> tuple[str, str]:
    """Return the namespace and name of a key."""
    namespace, _, name = key.partition("/")
    return namespace, name


def labels_of(obj: JsonObject) -> dict[str, str]:
    """Return the labels of an object; empty if it has none."""
    return obj["metadata"].get("labels") or {}


def annotations_of(obj: JsonObject) -> dict[str, str]:
    """Return the annotations of an object; empty if it has none."""
    return obj["metadata"].get("annotations") or {}


def is_deleting(obj: JsonObject) -> bool:
    """Return whether an object is being deleted."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def controller_of(obj: JsonObject) -> JsonObject | None:
    """Return the owner reference marked as controller."""
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return reference  # type: ignore[no-any-return]
    return None


def owner_reference(owner: JsonObject) -> JsonObject:
    """Return the reference by which an object names this one as its controller."""
    meta = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def condition(obj: JsonObject, kind: str) -> JsonObject | None:
    """Return the condition of a type; None if the object has none."""
    for entry in (obj.get("status") or {}).get("conditions") or []:
        if entry.get("type") == kind:
            return entry  # type: ignore[no-any-return]
    return None


def is_true(obj: JsonObject, kind: str) -> bool:
    """Return whether an object has a condition of a type, with status True."""
    found = condition(obj, kind)
    return found is not None and found.get("status") == "True"


def set_condition(conditions: list[JsonObject], entry: JsonObject, now: datetime) -> list[JsonObject]:
    """Return the conditions with `entry` for its type. The transition time changes only with the status."""
    result: list[JsonObject] = []
    found = False
    for old in conditions:
        if old.get("type") != entry["type"]:
            result.append(old)
            continue
        found = True
        if all(old.get(name) == entry.get(name) for name in ("status", "reason", "message")):
            result.append(old)
            continue
        since = old.get("lastTransitionTime") if old.get("status") == entry["status"] else timestamp(now)
        result.append({**old, **entry, "lastTransitionTime": since})
    if not found:
        result.append({**entry, "lastTransitionTime": timestamp(now)})
    return result


def created_at(obj: JsonObject) -> datetime:
    """Return the time of an object's creation."""
    return parse_time(obj["metadata"]["creationTimestamp"])


def pod_phase(pod: JsonObject) -> str:
    """Return the phase of a pod; Pending before its kubelet has reported one."""
    return str((pod.get("status") or {}).get("phase") or "Pending")


def is_terminal(pod: JsonObject) -> bool:
    """Return whether a pod has ended, by success or by failure."""
    return pod_phase(pod) in {"Succeeded", "Failed"}


def is_active(pod: JsonObject) -> bool:
    """Return whether a pod has neither ended nor is being deleted."""
    return not is_terminal(pod) and not is_deleting(pod)


def is_ready(pod: JsonObject) -> bool:
    """Return whether a pod is ready for requests."""
    return is_true(pod, "Ready")


def matches(selector: JsonObject | None, labels: Mapping[str, str]) -> bool:
    """Evaluate a metav1.LabelSelector; an empty selector matches everything, None nothing."""
    if selector is None:
        return False
    for name, value in (selector.get("matchLabels") or {}).items():
        if labels.get(name) != value:
            return False
    return all(expression_holds(item, labels) for item in selector.get("matchExpressions") or [])


def expression_holds(item: JsonObject, values: Mapping[str, str]) -> bool:
    """Evaluate one match expression of a label selector or a node selector term."""
    key, operator, wanted = item["key"], item["operator"], item.get("values") or []
    match operator:
        case "In":
            return values.get(key) in wanted
        case "NotIn":
            return values.get(key) not in wanted
        case "Exists":
            return key in values
        case "DoesNotExist":
            return key not in values
        case "Gt":
            return key in values and int(values[key]) > int(wanted[0])
        case "Lt":
            return key in values and int(values[key]) < int(wanted[0])
        case _:
            return False


def selector_text(labels: Mapping[str, str]) -> str:
    """Return labels as a selector of the API writes them: `a=1,b=2`."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def random_suffix(source: random.Random = _RANDOM, length: int = 5) -> str:
    """Return the end of a generated name."""
    return "".join(source.choice(ALPHABET) for _ in range(length))


def stable_hash(text: str, length: int = 10) -> str:
    """Return a short name part that depends only on `text`."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    letters = []
    for _ in range(length):
        number, index = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[index])
    return "".join(letters)


BUILTIN_KINDS: dict[tuple[str, str], Resource] = {
    ("v1", "Pod"): Resource("", "v1", "pods"),
    ("v1", "Service"): Resource("", "v1", "services"),
    ("v1", "ConfigMap"): Resource("", "v1", "configmaps"),
    ("v1", "Secret"): Resource("", "v1", "secrets"),
    ("v1", "ServiceAccount"): Resource("", "v1", "serviceaccounts"),
    ("v1", "PersistentVolumeClaim"): Resource("", "v1", "persistentvolumeclaims"),
    ("v1", "Endpoints"): Resource("", "v1", "endpoints"),
    ("v1", "Namespace"): Resource("", "v1", "namespaces"),
    ("v1", "Node"): Resource("", "v1", "nodes"),
    ("apps/v1", "Deployment"): Resource("apps", "v1", "deployments"),
    ("apps/v1", "ReplicaSet"): Resource("apps", "v1", "replicasets"),
    ("batch/v1", "Job"): Resource("batch", "v1", "jobs"),
    ("coordination.k8s.io/v1", "Lease"): Resource("coordination.k8s.io", "v1", "leases"),
    ("rbac.authorization.k8s.io/v1", "Role"): Resource("rbac.authorization.k8s.io", "v1", "roles"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): Resource("rbac.authorization.k8s.io", "v1", "rolebindings"),
}
"""Built-in kinds of the garbage collector and the namespace controller; custom ones come from their CRDs."""


def crd_resources(crd: JsonObject) -> Iterable[tuple[tuple[str, str], Resource]]:
    """Yield ((apiVersion, kind), resource) for the served versions of a CRD; the storage version first."""
    spec = crd["spec"]
    versions = [v for v in spec["versions"] if v.get("served")]
    for version in sorted(versions, key=lambda v: not v.get("storage")):
        resource = Resource(spec["group"], version["name"], spec["names"]["plural"])
        yield (f"{spec['group']}/{version['name']}", spec["names"]["kind"]), resource
