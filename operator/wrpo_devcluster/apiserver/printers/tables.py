"""metav1.Table for `kubectl get`, of built-in kinds and by a CRD's printer columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from wrpo_devcluster.apiserver.printers import jsonpath
from wrpo_devcluster.apiserver.printers.rows import Row, age, human_age
from wrpo_devcluster.apiserver.printers.table_cells import ROWS
from wrpo_devcluster.apiserver.schema import schema
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.client import JsonObject


@dataclass(frozen=True, slots=True)
class Column:
    """One column definition."""

    name: str
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0

    def as_dict(self) -> JsonObject:
        """Return the column as a Table's `columnDefinitions` have it."""
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        }


def describe(path: str) -> str:
    """Return the documentation of a built-in field, e.g. `io.k8s.api.batch.v1.JobStatus.succeeded`."""
    definition, _, name = path.rpartition(".")
    text: str = schema.definitions()[definition]["properties"][name].get("description", "")
    return text


_NAME = Column("Name", "string", "name", describe(f"{schema.META}.ObjectMeta.name"))
_AGE = Column("Age", "string", "", describe(f"{schema.META}.ObjectMeta.creationTimestamp"))
_JOB, _CORE, _APPS = "io.k8s.api.batch.v1", "io.k8s.api.core.v1", "io.k8s.api.apps.v1"
_IMAGES = (
    Column("Containers", description="Names of each container in the template.", priority=1),
    Column("Images", description="Images referenced by each container in the template.", priority=1),
)


def _plain(*names: str) -> tuple[Column, ...]:
    """Return columns described by their name. A leading + marks wide ones."""
    return tuple(
        Column(name.lstrip("+"), description=f"{name.lstrip('+')}.", priority=int(name[0] == "+")) for name in names
    )


_COLUMNS: dict[tuple[str, str], tuple[Column, ...]] = {
    ("", "Pod"): (
        Column("Ready", description="The aggregate readiness state of this pod for accepting traffic."),
        Column("Status", description="The aggregate status of the containers in this pod."),
        Column(
            "Restarts",
            description="The number of times the containers in this pod have been restarted and when the last container"
            " in this pod has restarted.",
        ),
        _AGE,
        Column("IP", description=describe(f"{_CORE}.PodStatus.podIP"), priority=1),
        Column("Node", description=describe(f"{_CORE}.PodSpec.nodeName"), priority=1),
        Column("Nominated Node", description=describe(f"{_CORE}.PodStatus.nominatedNodeName"), priority=1),
        Column("Readiness Gates", description=describe(f"{_CORE}.PodSpec.readinessGates"), priority=1),
    ),
    ("batch", "Job"): (
        Column("Status", description="Status of the job."),
        Column("Completions", description=describe(f"{_JOB}.JobStatus.succeeded")),
        Column("Duration", description="Time required to complete the job."),
        _AGE,
        *_IMAGES,
        Column("Selector", description=describe(f"{_JOB}.JobSpec.selector"), priority=1),
    ),
    ("batch", "CronJob"): (*_plain("Schedule", "Timezone", "Suspend", "Active", "Last Schedule"), _AGE),
    ("apps", "Deployment"): (
        Column("Ready", description="Number of the pod with ready state"),
        Column("Up-to-date", description=describe(f"{_APPS}.DeploymentStatus.updatedReplicas")),
        Column("Available", description=describe(f"{_APPS}.DeploymentStatus.availableReplicas")),
        _AGE,
        *_IMAGES,
        Column("Selector", description=describe(f"{_APPS}.DeploymentSpec.selector"), priority=1),
    ),
    ("apps", "ReplicaSet"): (
        Column("Desired", "integer", description=describe(f"{_APPS}.ReplicaSetSpec.replicas")),
        Column("Current", "integer", description=describe(f"{_APPS}.ReplicaSetStatus.replicas")),
        Column("Ready", "integer", description=describe(f"{_APPS}.ReplicaSetStatus.readyReplicas")),
        _AGE,
        *_IMAGES,
        Column("Selector", description=describe(f"{_APPS}.ReplicaSetSpec.selector"), priority=1),
    ),
    ("", "Service"): (*_plain("Type", "Cluster-IP", "External-IP", "Port(s)"), _AGE, *_plain("+Selector")),
    ("", "ConfigMap"): (*_plain("Data"), _AGE),
    ("", "Secret"): (*_plain("Type", "Data"), _AGE),
    ("", "ServiceAccount"): (*_plain("Secrets"), _AGE),
    ("", "Namespace"): (*_plain("Status"), _AGE),
    ("", "Node"): (*_plain("Status", "Roles"), _AGE, *_plain("Version", "+Internal-IP")),
    ("", "Event"): (
        Column("Last Seen", description=describe(f"{_CORE}.Event.lastTimestamp")),
        Column("Type", description=describe(f"{_CORE}.Event.type")),
        Column("Reason", description=describe(f"{_CORE}.Event.reason")),
        Column("Object", description=describe(f"{_CORE}.Event.involvedObject")),
        Column("Subobject", description=describe(f"{_CORE}.ObjectReference.fieldPath"), priority=1),
        Column("Source", description=describe(f"{_CORE}.Event.source"), priority=1),
        Column("Message", description=describe(f"{_CORE}.Event.message")),
        Column("First Seen", description=describe(f"{_CORE}.Event.firstTimestamp"), priority=1),
        Column("Count", description=describe(f"{_CORE}.Event.count"), priority=1),
        Column("Name", "string", "name", describe(f"{schema.META}.ObjectMeta.name"), priority=1),
    ),
    ("", "PersistentVolumeClaim"): (
        *_plain("Status", "Volume", "Capacity", "Access Modes", "StorageClass"), _AGE, *_plain("+VolumeMode"),
    ),
    ("", "PersistentVolume"): (
        *_plain("Capacity", "Access Modes", "Reclaim Policy", "Status", "Claim", "StorageClass", "Reason"), _AGE,
    ),
    ("", "Endpoints"): (*_plain("Endpoints"), _AGE),
    ("coordination.k8s.io", "Lease"): (*_plain("Holder"), _AGE),
    ("rbac.authorization.k8s.io", "Role"): _plain("Created At"),
    ("rbac.authorization.k8s.io", "ClusterRole"): _plain("Created At"),
    ("rbac.authorization.k8s.io", "RoleBinding"): (
        *_plain("Role"), _AGE, *_plain("+Users", "+Groups", "+ServiceAccounts"),
    ),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): (
        *_plain("Role"), _AGE, *_plain("+Users", "+Groups", "+ServiceAccounts"),
    ),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): (
        Column("Created At", "date", "", describe(f"{schema.META}.ObjectMeta.creationTimestamp")),
    ),
    ("networking.k8s.io", "NetworkPolicy"): (*_plain("Pod-Selector"), _AGE),
    ("policy", "PodDisruptionBudget"): (*_plain("Min Available", "Max Unavailable", "Allowed Disruptions"), _AGE),
    ("scheduling.k8s.io", "PriorityClass"): (
        *_plain("Value", "Global-Default"), _AGE, *_plain("PreemptionPolicy"),
    ),
    ("storage.k8s.io", "StorageClass"): (*_plain("Provisioner", "ReclaimPolicy", "VolumeBindingMode"), _AGE),
}  # fmt: skip


def make_table(
    kind: Kind, objects: Iterable[JsonObject], meta: JsonObject, *, include: str, now: datetime
) -> JsonObject:
    """Return a table of `objects`; `include` is None, Metadata or Object."""
    columns, make_row = _layout(kind)
    rows = []
    for obj in objects:
        row = make_row(obj, now)
        entry: JsonObject = {"cells": row.cells}
        if row.conditions:
            entry["conditions"] = row.conditions
        entry["object"] = _embedded(obj, include)
        rows.append(entry)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": [column.as_dict() for column in columns],
        "rows": rows,
    }


def _embedded(obj: JsonObject, include: str) -> JsonObject | None:
    if include == "None":
        return None
    return obj if include == "Object" else partial(obj)


def partial(obj: JsonObject) -> JsonObject:
    """Return the object's metadata alone."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def _layout(kind: Kind) -> tuple[tuple[Column, ...], Callable[[JsonObject, datetime], Row]]:
    if kind.custom is not None:
        return _custom_layout(kind.custom)
    key = (kind.group, kind.kind)
    if kind.kind == "Event":
        # The only kind whose name is a wide column. Both of its groups have the same table.
        return _COLUMNS["", "Event"], ROWS["", "Event"]
    if key in ROWS:
        make = ROWS[key]
        return (_NAME, *_COLUMNS[key]), lambda obj, now: Row(
            [obj["metadata"]["name"], *make(obj, now).cells], make(obj, now).conditions
        )
    return (_NAME, _AGE), lambda obj, now: Row([obj["metadata"]["name"], age(obj, now)])


def _custom_layout(version: JsonObject) -> tuple[tuple[Column, ...], Callable[[JsonObject, datetime], Row]]:
    declared = version.get("additionalPrinterColumns") or [
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    ]
    columns = tuple(
        Column(
            column["name"],
            column["type"],
            column.get("format", ""),
            column.get("description")
            or f"Custom resource definition column (in JSONPath format): {column['jsonPath']}",
            column.get("priority", 0),
        )
        for column in declared
    )

    def make_row(obj: JsonObject, now: datetime) -> Row:
        cells = [_custom_cell(column, jsonpath.first(column["jsonPath"], obj), now) for column in declared]
        return Row([obj["metadata"]["name"], *cells])

    return (_NAME, *columns), make_row


def _custom_cell(column: JsonObject, value: Any, now: datetime) -> Any:
    if value is None:
        return None
    kind = column["type"]
    if kind == "date":
        return human_age(value, now)
    if kind == "integer":
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind == "number":
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    if isinstance(value, dict | list):
        import json

        return json.dumps(value, separators=(",", ":"))
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
