"""Validation of pod specs."""

from __future__ import annotations

import ipaddress
from typing import Any

from wrpo_devcluster import quantity
from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    duplicate_field,
    forbidden_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.validation.limits import STANDARD_RESOURCES
from wrpo_devcluster.apiserver.validation.metadata import dns_label, dns_subdomain, qualified_name
from wrpo_devcluster.apiserver.validation.placement import placement
from wrpo_devcluster.client import JsonObject

_CHOICES = {
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "dnsPolicy": ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"),
}
_CONTAINER_CHOICES = {
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "terminationMessagePolicy": ("FallbackToLogsOnError", "File"),
}
_NAMES = {
    "serviceAccountName": dns_subdomain,
    "hostname": dns_label,
    "subdomain": dns_label,
    "priorityClassName": dns_subdomain,
}
_CONTAINER_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage"})
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_VALUE_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")


def pod_spec(spec: JsonObject, path: str) -> list[Cause]:
    """Return the faults of a pod's spec at a path, which differs for pods and templates."""
    causes: list[Cause] = []
    if not spec.get("containers"):
        causes.append(required_field(f"{path}.containers"))
    for name, choices in _CHOICES.items():
        if spec.get(name) not in choices:
            causes.append(unsupported_field(f"{path}.{name}", spec.get(name), choices))
    volumes, faults = _volumes(spec.get("volumes") or (), f"{path}.volumes")
    causes += faults
    causes += _containers(spec, path, volumes)
    causes += _periods(spec, path)
    for name, check in _NAMES.items():
        if spec.get(name):
            causes += check(spec[name], f"{path}.{name}")
    causes += _security(spec.get("securityContext") or {}, f"{path}.securityContext")
    causes += _host_aliases(spec.get("hostAliases") or (), f"{path}.hostAliases")
    return causes + placement(spec, path)


def _containers(spec: JsonObject, path: str, volumes: set[str]) -> list[Cause]:
    causes: list[Cause] = []
    names: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group) or ()):
            at = f"{path}.{group}[{index}]"
            causes += _container(container, at, volumes)
            if container.get("name") in names:
                causes.append(duplicate_field(f"{at}.name", container["name"]))
            names.add(container.get("name", ""))
    return causes


def _periods(spec: JsonObject, path: str) -> list[Cause]:
    causes: list[Cause] = []
    grace, deadline = spec.get("terminationGracePeriodSeconds", 0), spec.get("activeDeadlineSeconds")
    if grace < 0:
        at = f"{path}.terminationGracePeriodSeconds"
        causes.append(invalid_field(at, grace, "must be greater than or equal to 0"))
    if deadline is not None and not 1 <= deadline < 2**31:
        why = "must be between 1 and 2147483647, inclusive"
        causes.append(invalid_field(f"{path}.activeDeadlineSeconds", deadline, why))
    return causes


def _security(context: JsonObject, path: str) -> list[Cause]:
    return [
        invalid_field(f"{path}.{name}", context[name], "must be between 0 and 2147483647, inclusive")
        for name in ("runAsUser", "runAsGroup", "fsGroup")
        if context.get(name) is not None and not 0 <= context[name] < 2**31
    ]


def _host_aliases(aliases: Any, path: str) -> list[Cause]:
    causes: list[Cause] = []
    for index, alias in enumerate(aliases):
        at, address = f"{path}[{index}]", alias.get("ip", "")
        try:
            ipaddress.ip_address(address)
        except ValueError:
            causes.append(
                invalid_field(f"{at}.ip", address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
            )
        for name in alias.get("hostnames") or ():
            causes += dns_subdomain(name, f"{at}.hostnames")
    return causes


def _volumes(volumes: Any, path: str) -> tuple[set[str], list[Cause]]:
    causes: list[Cause] = []
    names: set[str] = set()
    for index, volume in enumerate(volumes):
        at = f"{path}[{index}]"
        name = volume.get("name", "")
        if not name:
            causes.append(required_field(f"{at}.name"))
        else:
            causes += dns_label(name, f"{at}.name")
        if name in names:
            causes.append(duplicate_field(f"{at}.name", name))
        names.add(name)
        sources = sorted(set(volume) - {"name"})
        causes += [forbidden_field(f"{at}.{extra}", "may not specify more than 1 volume type") for extra in sources[1:]]
        if "persistentVolumeClaim" in volume and not volume["persistentVolumeClaim"].get("claimName"):
            causes.append(required_field(f"{at}.persistentVolumeClaim.claimName"))
        if "secret" in volume and not volume["secret"].get("secretName"):
            causes.append(required_field(f"{at}.secret.secretName"))
        if "configMap" in volume and not volume["configMap"].get("name"):
            causes.append(required_field(f"{at}.configMap.name"))
        if "hostPath" in volume and not volume["hostPath"].get("path"):
            causes.append(required_field(f"{at}.hostPath.path"))
        if not sources:
            causes.append(required_field(at, "must specify a volume type"))
    return names, causes


def _container(container: JsonObject, path: str, volumes: set[str]) -> list[Cause]:
    causes: list[Cause] = []
    if not container.get("name"):
        causes.append(required_field(f"{path}.name"))
    else:
        causes += dns_label(container["name"], f"{path}.name")
    if not container.get("image"):
        causes.append(required_field(f"{path}.image"))
    elif container["image"] != container["image"].strip():
        causes.append(
            invalid_field(f"{path}.image", container["image"], "must not have leading or trailing whitespace")
        )
    for name, choices in _CONTAINER_CHOICES.items():
        if container.get(name) not in choices:
            causes.append(unsupported_field(f"{path}.{name}", container.get(name), choices))
    causes += _ports(container.get("ports") or (), f"{path}.ports")
    causes += _environment(container.get("env") or (), f"{path}.env")
    causes += _resources(container.get("resources") or {}, f"{path}.resources")
    causes += _mounts(container.get("volumeMounts") or (), f"{path}.volumeMounts", volumes)
    causes += _security(container.get("securityContext") or {}, f"{path}.securityContext")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        causes += _probe(container.get(name), f"{path}.{name}")
    return causes


def _mounts(mounts: Any, path: str, volumes: set[str]) -> list[Cause]:
    causes: list[Cause] = []
    mounted: set[str] = set()
    for index, mount in enumerate(mounts):
        at = f"{path}[{index}]"
        if not mount.get("name"):
            causes.append(required_field(f"{at}.name"))
        elif mount["name"] not in volumes:
            causes.append(Cause("FieldValueNotFound", f"{at}.name", f'Not found: "{mount["name"]}"'))
        if not mount.get("mountPath"):
            causes.append(required_field(f"{at}.mountPath"))
        elif mount["mountPath"] in mounted:
            causes.append(invalid_field(f"{at}.mountPath", mount["mountPath"], "must be unique"))
        mounted.add(mount.get("mountPath", ""))
        sub = mount.get("subPath", "")
        if sub.startswith("/"):
            causes.append(invalid_field(f"{at}.subPath", sub, "must be a relative path"))
        if ".." in sub.split("/"):
            causes.append(invalid_field(f"{at}.subPath", sub, "must not contain '..'"))
    return causes


def _probe(probe: JsonObject | None, path: str) -> list[Cause]:
    if probe is None:
        return []
    handlers = [name for name in _HANDLERS if probe.get(name) is not None]
    causes = [forbidden_field(f"{path}.{extra}", "may not specify more than 1 handler type") for extra in handlers[1:]]
    if not handlers:
        causes.append(required_field(path, "must specify a handler type"))
    causes += [
        invalid_field(f"{path}.{name}", probe[name], "must be greater than or equal to 0")
        for name in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")
        if (probe.get(name) or 0) < 0
    ]
    return causes


def _resource_name(name: str, path: str) -> list[Cause]:
    """Return the faults of the name of a resource that a container may request."""
    causes = qualified_name(name, path)
    if "/" in name:
        prefix = name.partition("/")[0]
        if prefix.startswith("requests.") or name.startswith("requests."):
            causes.append(invalid_field(path, name, "doesn't follow extended resource name standard"))
    elif name not in _CONTAINER_RESOURCES and not name.startswith("hugepages-"):
        if not causes and name not in STANDARD_RESOURCES:
            causes.append(invalid_field(path, name, "must be a standard resource type or fully qualified"))
        causes.append(invalid_field(path, name, "must be a standard resource for containers"))
    return causes


def _ports(ports: Any, path: str) -> list[Cause]:
    causes: list[Cause] = []
    names: set[str] = set()
    for index, port in enumerate(ports):
        at = f"{path}[{index}]"
        if not 1 <= (port.get("containerPort") or 0) <= 65535:
            causes.append(
                invalid_field(
                    f"{at}.containerPort", port.get("containerPort", 0), "must be between 1 and 65535, inclusive"
                )
            )
        if port.get("protocol") not in {"TCP", "UDP", "SCTP"}:
            causes.append(unsupported_field(f"{at}.protocol", port.get("protocol"), ("SCTP", "TCP", "UDP")))
        name = port.get("name")
        if name:
            if name in names:
                causes.append(duplicate_field(f"{at}.name", name))
            if len(name) > 15:
                causes.append(invalid_field(f"{at}.name", name, "must be no more than 15 bytes"))
            names.add(name)
    return causes


def _environment(env: Any, path: str) -> list[Cause]:
    causes: list[Cause] = []
    for index, variable in enumerate(env):
        at = f"{path}[{index}]"
        name = variable.get("name", "")
        if not name:
            causes.append(required_field(f"{at}.name"))
        elif "=" in name:
            why = "a valid environment variable name must consist only of printable ASCII characters other than '='"
            causes.append(invalid_field(f"{at}.name", name, why))
        source = variable.get("valueFrom")
        if source is not None:
            given = [kind for kind in _VALUE_SOURCES if kind in source]
            if variable.get("value"):
                causes.append(invalid_field(f"{at}.valueFrom", "", "may not be specified when `value` is not empty"))
            if len(given) != 1:
                why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"  # noqa: E501
                causes.append(invalid_field(f"{at}.valueFrom", "", why))
    return causes


def _resources(resources: JsonObject, path: str) -> list[Cause]:
    causes: list[Cause] = []
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for group, values in (("limits", limits), ("requests", requests)):
        for name, value in values.items():
            at, amount = f"{path}.{group}[{name}]", quantity.parse(value)
            causes += _resource_name(name, at)
            if amount < 0:
                causes.append(invalid_field(at, value, "must be greater than or equal to 0"))
            if "/" in name and amount != amount.to_integral_value():
                causes.append(invalid_field(at, value, "must be an integer"))
    for name, value in requests.items():
        extended = "/" in name
        if name in limits:
            if extended and quantity.parse(value) != quantity.parse(limits[name]):
                why = f"must be equal to {name} limit of {limits[name]}"
                causes.append(invalid_field(f"{path}.requests", value, why))
            elif quantity.parse(value) > quantity.parse(limits[name]):
                why = f"must be less than or equal to {name} limit of {limits[name]}"
                causes.append(invalid_field(f"{path}.requests", value, why))
        elif extended:
            causes.append(
                required_field(f"{path}.limits", f"Limit must be set for non overcommitable resources: {name}")
            )
    return causes
