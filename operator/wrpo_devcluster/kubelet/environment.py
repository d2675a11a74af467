"""Pure rendering of a container's environment and command line from its manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from wrpo_devcluster import quantity
from wrpo_devcluster.client import JsonObject
from wrpo_devcluster.objects import annotations_of, labels_of

_REFERENCE = re.compile(r"\$\$|\$\(([^)]+)\)")
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")


class ConfigError(Exception):
    """The manifest does not allow the container to be created; the message is the kubelet's."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Decoded ConfigMaps and Secrets of the pod's namespace by name; None for one that does not exist."""

    config_maps: Mapping[str, Mapping[str, str] | None]
    secrets: Mapping[str, Mapping[str, str] | None]


def expand(text: str, env: Mapping[str, str]) -> str:
    """Expand $(NAME) as Kubernetes does: unknown names stay, $$ is a dollar sign."""

    def replace(match: re.Match[str]) -> str:
        if match.group(0) == "$$":
            return "$"
        return env.get(match.group(1), match.group(0))

    return _REFERENCE.sub(replace, text)


def referenced(container: JsonObject) -> tuple[set[str], set[str]]:
    """Return the names of (ConfigMaps, Secrets) that the container's environment needs."""
    config_maps: set[str] = set()
    secrets: set[str] = set()
    for source in container.get("envFrom") or []:
        if source.get("configMapRef"):
            config_maps.add(source["configMapRef"]["name"])
        if source.get("secretRef"):
            secrets.add(source["secretRef"]["name"])
    for entry in container.get("env") or []:
        value_from = entry.get("valueFrom") or {}
        if value_from.get("configMapKeyRef"):
            config_maps.add(value_from["configMapKeyRef"]["name"])
        if value_from.get("secretKeyRef"):
            secrets.add(value_from["secretKeyRef"]["name"])
    return config_maps, secrets


def container_env(
    pod: JsonObject, container: JsonObject, sources: Sources, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that the manifest sets. `inherited` is only for $(NAME) references."""
    namespace = pod["metadata"]["namespace"]
    env: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        env |= _env_from(source, sources)
    for entry in container.get("env") or []:
        if entry.get("valueFrom"):
            value = _value_from(entry["valueFrom"], pod, container, sources, namespace)
        else:
            value = expand(entry.get("value") or "", {**inherited, **env})
        if value is not None:
            env[entry["name"]] = value
    return env


def _env_from(source: JsonObject, sources: Sources) -> dict[str, str]:
    prefix = source.get("prefix") or ""
    for field, kind, known in (
        ("configMapRef", "configmap", sources.config_maps),
        ("secretRef", "secret", sources.secrets),
    ):
        reference = source.get(field)
        if reference:
            data = known.get(reference["name"])
            if data is None:
                if reference.get("optional"):
                    return {}
                raise ConfigError(f'{kind} "{reference["name"]}" not found')
            return {f"{prefix}{name}": value for name, value in data.items()}
    return {}


def _value_from(
    value_from: JsonObject, pod: JsonObject, container: JsonObject, sources: Sources, namespace: str
) -> str | None:
    if "fieldRef" in value_from:
        return field_value(pod, value_from["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in value_from:
        return resource_value(pod, container, value_from["resourceFieldRef"])
    for field, kind, title, known in (
        ("configMapKeyRef", "configmap", "ConfigMap", sources.config_maps),
        ("secretKeyRef", "secret", "Secret", sources.secrets),
    ):
        reference = value_from.get(field)
        if not reference:
            continue
        data = known.get(reference["name"])
        if data is None:
            if reference.get("optional"):
                return None
            raise ConfigError(f'{kind} "{reference["name"]}" not found')
        if reference["key"] not in data:
            if reference.get("optional"):
                return None
            raise ConfigError(f"couldn't find key {reference['key']} in {title} {namespace}/{reference['name']}")
        return data[reference["key"]]
    raise ConfigError(f"invalid valueFrom: {sorted(value_from)}")


def field_value(pod: JsonObject, path: str) -> str:
    """Return the value of a downward API field."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    subscript = _SUBSCRIPT.match(path)
    if subscript:
        values = labels_of(pod) if subscript.group(1) == "labels" else annotations_of(pod)
        return values.get(subscript.group(2), "")
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(meta[path.removeprefix("metadata.")])
        case "metadata.labels":
            return "\n".join(f'{k}="{v}"' for k, v in sorted(labels_of(pod).items()))
        case "metadata.annotations":
            return "\n".join(f'{k}="{v}"' for k, v in sorted(annotations_of(pod).items()))
        case "spec.nodeName":
            return str(spec.get("nodeName", ""))
        case "spec.serviceAccountName":
            return str(spec.get("serviceAccountName", "default"))
        case "status.hostIP" | "status.hostIPs":
            return str(status.get("hostIP", "127.0.0.1"))
        case "status.podIP" | "status.podIPs":
            return str(status.get("podIP", ""))
        case _:
            raise ConfigError(f"unsupported fieldPath: {path}")


def resource_value(pod: JsonObject, container: JsonObject, reference: JsonObject) -> str:
    """Return a container's limit or request in units of the divisor, rounded up."""
    name = reference.get("containerName")
    if name:
        everything = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
        container = next((c for c in everything if c["name"] == name), container)
    kind, _, resource = reference["resource"].partition(".")
    amount = ((container.get("resources") or {}).get(kind) or {}).get(resource)
    divisor = reference.get("divisor") or "1"
    if amount is None:
        return "0"
    exact = quantity.parse(amount) / (quantity.parse(divisor) or 1)
    return str(math.ceil(exact))


def thread_limit(container: JsonObject) -> str | None:
    """Return OMP_NUM_THREADS for the cpu limit. Limits are not enforced, but libraries should respect them."""
    limit = ((container.get("resources") or {}).get("limits") or {}).get("cpu")
    return str(max(1, math.ceil(quantity.parse(limit)))) if limit is not None else None


def command_line(container: JsonObject, entrypoint: list[str] | None, env: Mapping[str, str]) -> list[str]:
    """Return the argument vector: command or the image's entrypoint, then the arguments."""
    command = container.get("command") or entrypoint or []
    return [expand(part, env) for part in [*command, *(container.get("args") or [])]]
