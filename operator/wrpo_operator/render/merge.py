"""Strategic-merge patch of a pod template: lists with a key are merged item by item, other lists replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MERGE_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resizePolicy": "resourceName",
}
"""Patch merge keys of core/v1 PodSpec and Container, by field name."""


def strategic_merge(base: Any, patch: Any, field: str = "") -> Any:
    """Return base merged with a patch; neither is modified. Templates that delete (null, $patch) are refused
    earlier.
    """
    if isinstance(base, dict) and isinstance(patch, Mapping):
        out = dict(base)
        for key, value in patch.items():
            out[key] = strategic_merge(out[key], value, key) if key in out else value
        return out
    if isinstance(base, list) and isinstance(patch, list) and field in MERGE_KEYS:
        return _merge_items(base, patch, MERGE_KEYS[field])
    return patch


def _merge_items(base: list[Any], patch: list[Any], key: str) -> list[Any]:
    out = list(base)
    for item in patch:
        place = next((index for index, other in enumerate(out) if other.get(key) == item.get(key)), None)
        if place is None:
            out.append(item)
        else:
            out[place] = strategic_merge(out[place], item)
    return out
