"""Which parts of spec.podTemplate belong to the operator and are refused.

A template may add labels, annotations, volumes, mounts, environment, init containers, affinity and much else; it may
not change what runs, as whom, with which token, or weaken the restricted security context.
"""

from __future__ import annotations

import posixpath
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
ALLOWED_SECURITY: Mapping[str, bool | None] = {
    "allowPrivilegeEscalation": False,
    "fsGroup": None,
    "fsGroupChangePolicy": None,
    "privileged": False,
    "readOnlyRootFilesystem": None,
    "runAsGroup": None,
    "runAsNonRoot": True,
    "runAsUser": None,
    "seccompProfile": None,
    "supplementalGroups": None,
    "supplementalGroupsPolicy": None,
}
"""Fields of a security context that may be set, and the only value where there is one."""
ALLOWED_VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
"""Kinds of volumes of the restricted pod security standard."""
RESERVED_META = ("wrpo.ai/", "app.kubernetes.io/managed-by", "batch.kubernetes.io/", "training.kubeflow.org/")


def protected_field_errors(pod_template: Mapping[str, Any]) -> tuple[str, ...]:
    """Every refused part of a pod template as a sentence; empty when there is none."""
    return (*_errors(pod_template), *_directives("spec.podTemplate", pod_template))


def _directives(path: str, part: object) -> Iterator[str]:
    """Find $patch, null and the like: they could delete what the operator needs."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if str(key).startswith("$") or value is None:
                yield f"{path}.{key} is refused: a template may add and change, but not delete. Remove it."
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
        for key in sorted(set(volume) - ALLOWED_VOLUMES - {"name"}):
            yield f"{here}.volumes[{name}].{key} is refused: stages run restricted. Use a claim."
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
        path = f"{here}.initContainers[{container.get('name', '')}]"
        if "ports" in container:
            yield _owned(f"{path}.ports")
        yield from _container_errors(path, container)
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
        where = posixpath.normpath(str(mount.get("mountPath", "")))
        if where in RESERVED_PATHS or where.startswith(tuple(f"{reserved}/" for reserved in RESERVED_PATHS[:3])):
            yield _owned(f"{path}.volumeMounts[{where}]")


def _security_errors(path: str, context: object) -> Iterator[str]:
    """Check a security context: it may choose users and groups and be stricter, not leave the restricted standard."""
    if not isinstance(context, Mapping):
        return
    for key in sorted(set(context) - set(ALLOWED_SECURITY)):
        yield f"{path}.{key} is refused: stages run restricted. Remove it."
    for key, allowed in ALLOWED_SECURITY.items():
        if key in context and allowed is not None and context[key] is not allowed:
            yield f"{path}.{key} is refused: stages run restricted. Remove it."
    if context.get("runAsUser") == 0:
        yield f"{path} asks for root: stages run as an ordinary user. Set runAsUser to another number or remove it."
    profile = context.get("seccompProfile", {"type": "RuntimeDefault"})
    if not isinstance(profile, Mapping) or profile.get("type") not in {"RuntimeDefault", "Localhost"}:
        yield f"{path}.seccompProfile is refused: stages run restricted. Remove it."


def _items(parent: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = parent.get(key)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
