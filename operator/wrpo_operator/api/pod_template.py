"""Protected parts of spec.podTemplate, which the operator sets and users cannot.

A template may add labels, annotations, volumes, mounts, environment, init containers, affinity and more. It may
not change the command, the user or the token, or weaken the restricted security context. No policy allows root,
privileges, added capabilities, a missing system call filter, the host's files, ports or namespaces, or API tokens.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wrpo_operator.api import names
from wrpo_operator.api.backends import CHILD_KINDS, JOB
from wrpo_operator.api.rules import RESERVED_ENV

STAGE_CONTAINER = JOB.container
RESERVED_VOLUME_PREFIX = "wrpo-"
RESERVED_PATHS = ("/etc/wrpo", "/var/lib/wrpo", "/var/run/secrets/wrpo.ai", "/dev/shm", "/dev/termination-log", "/tmp")  # noqa: S108 -- names of mount points, nothing is written here
PROTECTED_POD_FIELDS = frozenset(
    {
        "activeDeadlineSeconds", "automountServiceAccountToken", "enableServiceLinks", "ephemeralContainers",
        "hostIPC", "hostNetwork", "hostPID", "hostUsers", "hostname", "nodeName", "os", "priority", "restartPolicy",
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
    "readOnlyRootFilesystem": True,
    "runAsGroup": None,
    "runAsNonRoot": True,
    "runAsUser": None,
    "seccompProfile": None,
    "supplementalGroups": None,
    "supplementalGroupsPolicy": None,
}
"""Fields of a security context that may be set, and the only value where there is one."""
BY_POLICY = frozenset({"appArmorProfile", "readOnlyRootFilesystem", "seLinuxOptions"})
"""Fields that an administrator may leave to users, within the restricted standard."""
CONFINED = frozenset({"RuntimeDefault", "Localhost"})
"""Types of seccomp and AppArmor profiles within the restricted standard."""
SELINUX_TYPES = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})
ALLOWED_VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
"""Kinds of volumes of the restricted pod security standard."""
RESERVED_META = frozenset(
    {names.GROUP, names.LABEL_MANAGED_BY, *(key for kind in CHILD_KINDS.values() for key in kind.reserved)}
)
"""Domains (with their subdomains) and whole keys of labels and annotations that users cannot set."""
RESERVED_LABELS = RESERVED_META | {"kueue.x-k8s.io"}
"""The same of labels. Kueue's annotations are left to users: by them they choose the topology of their pods."""
PROFILE_ANNOTATIONS = (
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
)
"""Older ways to write what stands in a security context now."""
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
HANDLERS = ("httpGet", "tcpSocket")


@dataclass(frozen=True, slots=True)
class PodTemplatePolicy:
    """Settings that the administrator leaves to users."""

    allow_security_overrides: bool = False
    """A writable root file system, SELinux options and other seccomp and AppArmor profiles, within the restricted
    standard. False: those of the stages stay."""


STRICT = PodTemplatePolicy()


def protected_field_errors(pod_template: Mapping[str, Any], policy: PodTemplatePolicy = STRICT) -> tuple[str, ...]:
    """Every refused part of a pod template as a sentence; empty when there is none."""
    return (*_errors(pod_template, policy), *_directives("spec.podTemplate", pod_template))


def _directives(path: str, part: object) -> Iterator[str]:
    """Yield an error for each $patch directive and null, which could delete fields that the operator needs."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if str(key).startswith("$") or value is None:
                yield f"{path}.{key} is refused: a template may add and change, but not delete. Remove it."
            yield from _directives(f"{path}.{key}", value)
    elif isinstance(part, list):
        for index, item in enumerate(part):
            yield from _directives(f"{path}[{index}]", item)


def _errors(template: Mapping[str, Any], policy: PodTemplatePolicy) -> Iterator[str]:
    here = "spec.podTemplate"
    for key in sorted(set(template) - {"metadata", "spec"}):
        yield f"{here}.{key} is not part of a pod template. Only metadata and spec are."
    metadata = template.get("metadata", {})
    spec = template.get("spec", {})
    if not isinstance(metadata, Mapping) or not isinstance(spec, Mapping):
        yield f"{here}.metadata and {here}.spec must be objects."
        return
    yield from _metadata_errors(f"{here}.metadata", metadata)
    yield from _pod_errors(f"{here}.spec", spec, policy)


def _metadata_errors(here: str, metadata: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(set(metadata) - {"labels", "annotations"}):
        yield f"{here}.{key} cannot be set. Only labels and annotations can."
    for kind in ("labels", "annotations"):
        values = metadata.get(kind, {})
        if not isinstance(values, Mapping) or not all(isinstance(value, str) for value in values.values()):
            yield f"{here}.{kind} must be a map of strings. Quote numbers and booleans."
            continue
        for key in sorted(values):
            if _is_reserved(key, RESERVED_LABELS if kind == "labels" else RESERVED_META):
                yield _owned(f"{here}.{kind}[{key}]")
            if key.startswith(PROFILE_ANNOTATIONS):
                yield _unrestricted(f"{here}.{kind}[{key}]")


def _is_reserved(key: str, reserved: frozenset[str]) -> bool:
    domain, slash, _ = key.partition("/")
    parts = domain.split(".") if slash else []
    return key in reserved or any(".".join(parts[at:]) in reserved for at in range(len(parts)))


def _owned(path: str) -> str:
    return f"{path} belongs to the operator. Remove it."


def _unrestricted(path: str) -> str:
    return f"{path} is refused: stages run restricted. Remove it."


def _pod_errors(here: str, spec: Mapping[str, Any], policy: PodTemplatePolicy) -> Iterator[str]:
    for key in sorted(PROTECTED_POD_FIELDS & set(spec)):
        yield _owned(f"{here}.{key}")
    yield from _security_errors(f"{here}.securityContext", spec.get("securityContext", {}), policy)
    for key in ("volumes", "containers", "initContainers", "tolerations"):
        yield from _list_errors(f"{here}.{key}", spec.get(key, []))
    for volume in _items(spec, "volumes"):
        yield from _volume_errors(here, volume)
    for container in _items(spec, "containers"):
        name = str(container.get("name", ""))
        path = f"{here}.containers[{name}]"
        if name != STAGE_CONTAINER:
            yield (
                f"{path} is refused: a second container would keep the stage from completing. "
                f"Change container `{STAGE_CONTAINER}`, or add an init container."
            )
        for key in sorted(PROTECTED_CONTAINER_FIELDS & set(container)):
            yield _owned(f"{path}.{key}")
        yield from _container_errors(path, container, policy)
    for container in _items(spec, "initContainers"):
        path = f"{here}.initContainers[{container.get('name', '')}]"
        for key in sorted({"ports", "lifecycle"} & set(container)):
            yield _owned(f"{path}.{key}")
        yield from _container_errors(path, container, policy)


def _list_errors(path: str, value: object) -> Iterator[str]:
    """Yield an error unless the value is a list of objects, whose items are checked. Null is refused elsewhere."""
    if value is None:
        return
    if not isinstance(value, list):
        yield f"{path} must be a list."
    elif not all(isinstance(item, Mapping) for item in value):
        yield f"{path} must be a list of objects."


def _volume_errors(here: str, volume: Mapping[str, Any]) -> Iterator[str]:
    name = str(volume.get("name", ""))
    path = f"{here}.volumes[{name}]"
    if name.startswith(RESERVED_VOLUME_PREFIX):
        yield _owned(path)
    for key in sorted(set(volume) - ALLOWED_VOLUMES - {"name"}):
        yield f"{path}.{key} is refused: stages run restricted. Use a claim."
    projected = volume.get("projected", {})
    sources = projected.get("sources", []) if isinstance(projected, Mapping) else None
    if not isinstance(sources, list) or not all(isinstance(source, Mapping) for source in sources):
        yield f"{path}.projected.sources must be a list of objects."
    elif any("serviceAccountToken" in source for source in sources):
        yield f"{path}.projected is refused: stages get no further tokens. Remove serviceAccountToken."


def _container_errors(path: str, container: Mapping[str, Any], policy: PodTemplatePolicy) -> Iterator[str]:
    yield from _security_errors(f"{path}.securityContext", container.get("securityContext", {}), policy)
    for key in ("env", "volumeMounts"):
        yield from _list_errors(f"{path}.{key}", container.get(key, []))
    for variable in _items(container, "env"):
        name = str(variable.get("name", ""))
        if RESERVED_ENV.match(name):
            yield _owned(f"{path}.env[{name}]")
    for mount in _items(container, "volumeMounts"):
        # Runtimes take any path as one from the root, however many slashes it begins with.
        where = posixpath.normpath("/" + str(mount.get("mountPath", "")).lstrip("/"))
        if where in RESERVED_PATHS or where.startswith(tuple(f"{reserved}/" for reserved in RESERVED_PATHS[:3])):
            yield _owned(f"{path}.volumeMounts[{where}]")
    for probe in PROBES:
        for handler in HANDLERS:
            action = _map(_map(container.get(probe)).get(handler))
            if action.get("host"):
                yield f"{path}.{probe}.{handler}.host is refused: probes must target the pod. Remove it."


def _security_errors(path: str, context: object, policy: PodTemplatePolicy) -> Iterator[str]:
    """Yield the errors of a security context, which may set users and groups within the restricted standard."""
    if not isinstance(context, Mapping):
        if context is not None:
            yield f"{path} must be an object."
        return
    for key in sorted(set(context) - set(ALLOWED_SECURITY) - BY_POLICY):
        yield _unrestricted(f"{path}.{key}")
    for key, allowed in ALLOWED_SECURITY.items():
        if key in context and key not in BY_POLICY and allowed is not None and context[key] is not allowed:
            yield _unrestricted(f"{path}.{key}")
    if context.get("runAsUser") == 0:
        yield f"{path} requests root: stages run as a non-root user. Set runAsUser to another number or remove it."
    yield from _profile_errors(path, context, policy)


def _profile_errors(path: str, context: Mapping[str, Any], policy: PodTemplatePolicy) -> Iterator[str]:
    profiles = {key: _map(context[key]).get("type") for key in ("seccompProfile", "appArmorProfile") if key in context}
    selinux = _map(context.get("seLinuxOptions"))
    outside = [key for key, kind in profiles.items() if kind not in CONFINED]
    if selinux.get("user") or selinux.get("role") or selinux.get("type", "") not in SELINUX_TYPES:
        outside.append("seLinuxOptions")
    if context.get("readOnlyRootFilesystem", True) not in {True, False}:
        outside.append("readOnlyRootFilesystem")
    for key in sorted(outside):
        yield _unrestricted(f"{path}.{key}")
    lifted = [key for key, kind in profiles.items() if kind == "Localhost"]
    lifted += [key for key in ("readOnlyRootFilesystem",) if context.get(key, True) is False]
    lifted += ["seLinuxOptions"] if "seLinuxOptions" in context else []
    for key in sorted(set(lifted) - set(outside)) if not policy.allow_security_overrides else ():
        yield (
            f"{path}.{key} is refused: this installation keeps the stages' security settings. Remove it, or ask the "
            "administrator to set podTemplatePolicy.allowSecurityOverrides in the operator's chart."
        )


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _items(parent: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = parent.get(key)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
