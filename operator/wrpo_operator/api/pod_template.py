"""Which parts of spec.podTemplate belong to the operator and are refused.

A template may add labels, annotations, volumes, mounts, environment, init containers, affinity and much else; it may
not change what runs, as whom, with which token, or weaken the restricted security context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wrpo_operator.api.rules import RESERVED_ENV

STAGE_CONTAINER = "stage"
RESERVED_VOLUME_PREFIX = "wrpo-"
RESERVED_PATHS = ("/etc/wrpo", "/var/lib/wrpo", "/var/run/secrets/wrpo.ai", "/dev/shm", "/dev/termination-log", "/tmp")  # noqa: S108 -- names of mount points, nothing is written here
PROTECTED_POD_FIELDS = frozenset(
    {
        "activeDeadlineSeconds", "automountServiceAccountToken", "enableServiceLinks", "ephemeralContainers",
        "hostIPC", "hostNetwork", "hostPID", "hostUsers", "hostname", "nodeName", "priority", "restartPolicy",
        "serviceAccount", "serviceAccountName", "subdomain", "shareProcessNamespace",
    }
)  # fmt: skip
PROTECTED_CONTAINER_FIELDS = frozenset(
    {"args", "command", "lifecycle", "ports", "stdin", "terminationMessagePath", "terminationMessagePolicy", "tty"}
)
RESERVED_META = ("wrpo.ai/", "app.kubernetes.io/managed-by", "batch.kubernetes.io/", "training.kubeflow.org/")


def protected_field_errors(pod_template: Mapping[str, Any]) -> tuple[str, ...]:
    """Every refused part of a pod template as a sentence; empty when there is none."""
    return (*_errors(pod_template), *_directives("spec.podTemplate", pod_template))


def _directives(path: str, part: object) -> Iterator[str]:
    """Find $patch and the like: they could delete what the operator needs."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if str(key).startswith("$"):
                yield f"{path}.{key} is not supported. Use null to remove a field."
            yield from _directives(f"{path}.{key}", value)
    elif isinstance(part, list):
        for index, item in enumerate(part):
            yield from _directives(f"{path}[{index}]", item)


def _errors(template: Mapping[str, Any]) -> Iterator[str]:
    here = "spec.podTemplate"
    for key in sorted(set(template) - {"metadata", "spec"}):
        yield f"{here}.{key} is not part of a pod template. Only metadata and spec are."
    metadata = template.get("metadata", {})
    spec = template.get("spec", {})
    if not isinstance(metadata, Mapping) or not isinstance(spec, Mapping):
        yield f"{here}.metadata and {here}.spec must be objects."
        return
    yield from _metadata_errors(f"{here}.metadata", metadata)
    yield from _pod_errors(f"{here}.spec", spec)


def _metadata_errors(here: str, metadata: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(set(metadata) - {"labels", "annotations"}):
        yield f"{here}.{key} cannot be set. Only labels and annotations can."
    for kind in ("labels", "annotations"):
        values = metadata.get(kind, {})
        if not isinstance(values, Mapping) or not all(isinstance(value, str) for value in values.values()):
            yield f"{here}.{kind} must be a map of strings. Quote numbers and booleans."
            continue
        for key in sorted(values):
            if key.startswith(RESERVED_META):
                yield _owned(f"{here}.{kind}[{key}]")


def _owned(path: str) -> str:
    return f"{path} belongs to the operator. Remove it."


def _pod_errors(here: str, spec: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(PROTECTED_POD_FIELDS & set(spec)):
        yield _owned(f"{here}.{key}")
    yield from _security_errors(f"{here}.securityContext", spec.get("securityContext"))
    for volume in _items(spec, "volumes"):
        name = str(volume.get("name", ""))
        if name.startswith(RESERVED_VOLUME_PREFIX):
            yield _owned(f"{here}.volumes[{name}]")
        if "hostPath" in volume:
            yield f"{here}.volumes[{name}].hostPath is refused: it opens the node to the pod. Use a claim."
    for container in _items(spec, "containers"):
        name = str(container.get("name", ""))
        path = f"{here}.containers[{name}]"
        if name != STAGE_CONTAINER:
            yield (
                f"{path} is refused: a second container would keep the stage from ending. "
                f"Change container `{STAGE_CONTAINER}`, or add an init container."
            )
        for key in sorted(PROTECTED_CONTAINER_FIELDS & set(container)):
            yield _owned(f"{path}.{key}")
        yield from _container_errors(path, container)
    for container in _items(spec, "initContainers"):
        yield from _container_errors(f"{here}.initContainers[{container.get('name', '')}]", container)
    for key in ("volumes", "containers", "initContainers", "tolerations"):
        if key in spec and not isinstance(spec[key], list):
            yield f"{here}.{key} must be a list."


def _container_errors(path: str, container: Mapping[str, Any]) -> Iterator[str]:
    yield from _security_errors(f"{path}.securityContext", container.get("securityContext"))
    for variable in _items(container, "env"):
        name = str(variable.get("name", ""))
        if RESERVED_ENV.match(name):
            yield _owned(f"{path}.env[{name}]")
    for mount in _items(container, "volumeMounts"):
        where = str(mount.get("mountPath", "")).rstrip("/")
        if where in RESERVED_PATHS or where.startswith(tuple(f"{reserved}/" for reserved in RESERVED_PATHS[:3])):
            yield _owned(f"{path}.volumeMounts[{where}]")


def _security_errors(path: str, context: object) -> Iterator[str]:
    if not isinstance(context, Mapping):
        return
    for key in ("privileged", "allowPrivilegeEscalation"):
        if context.get(key) is True:
            yield f"{path}.{key} is refused: stages run restricted. Remove it."
    if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
        yield f"{path} asks for root: stages run as an ordinary user. Set runAsUser to another number or remove it."
    capabilities = context.get("capabilities")
    if isinstance(capabilities, Mapping) and capabilities.get("add"):
        yield f"{path}.capabilities.add is refused: stages run restricted. Remove it."
    profile = context.get("seccompProfile")
    if isinstance(profile, Mapping) and profile.get("type") == "Unconfined":
        yield f"{path}.seccompProfile is refused: stages run restricted. Remove it."
    for key in ("procMount", "windowsOptions", "sysctls"):
        if key in context:
            yield f"{path}.{key} is refused: stages run restricted. Remove it."


def _items(parent: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = parent.get(key)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
