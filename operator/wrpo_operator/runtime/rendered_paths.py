"""Translation of paths of rendered manifests, in messages of the API server, to fields of the spec.

The server names `spec.template.spec.containers[0].env[3].value` of a Job; the user wrote
`spec.podTemplate.spec.containers[stage].env[A].value`, or `spec.env[A]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wrpo_engine.contract.storage import StorageField
from wrpo_operator.api.pod_template import STAGE_CONTAINER
from wrpo_operator.render.merge import MERGE_KEYS

_STEP = r"(?:\.[A-Za-z][A-Za-z0-9_-]*|\[[^\[\]]*\])"
_PATH = re.compile(rf"(?<![\w/])\.?((?:spec{_STEP}*\.)?)template\.((?:spec|metadata){_STEP}*)")
"""In a JobSet or a runtime, the pod template is in the template of a Job: the innermost one counts."""
_PART = re.compile(r"\.?([A-Za-z][A-Za-z0-9_-]*)|\[([^\[\]]*)\]")
_KEYED = re.compile(r'(\w+)="?([^",]*)"?')
_FIELDS: Mapping[str, str] = {
    "nodeSelector": "spec.scheduling.nodeSelector",
    "tolerations": "spec.scheduling.tolerations",
    "priorityClassName": "spec.scheduling.priorityClassName",
    "schedulerName": "spec.scheduling.schedulerName",
    "imagePullSecrets": "spec.imagePullSecrets",
    "resources": "spec.resources",
    "image": "spec.images",
    "env": "spec.env",
    "envFrom": f"spec.{StorageField.S3_CREDENTIALS}",
}
"""Fields of a pod or of its container that another part of the spec sets unless the template does."""


def user_paths(text: str, manifest: Mapping[str, Any], pod_template: Mapping[str, Any]) -> str:
    """Return the server's message with the user's paths, if a path can be found in the manifest."""
    return _PATH.sub(lambda match: _translated(match[1], match[2], manifest, pod_template), text)


def _translated(head: str, inner: str, manifest: Mapping[str, Any], pod_template: Mapping[str, Any]) -> str:
    template = _follow(manifest, _steps(f"{head}template"))
    steps = _named(template, _steps(inner))
    shown = "".join(f"[{step}]" if is_item else f".{step}" for step, is_item in steps)
    if _is_written(pod_template, steps):
        return f"spec.podTemplate{shown}"
    for index, (step, is_item) in enumerate(steps):
        if not is_item and step in _FIELDS:
            rest = "".join(f"[{name}]" if item else f".{name}" for name, item in steps[index + 1 :])
            return f"{_FIELDS[step]}{rest}"
    return f"spec.podTemplate{shown}"


def _steps(path: str) -> list[tuple[str, bool]]:
    """Split a path into fields and, with True, indexes or keys of lists and maps."""
    return [(name or item, not name) for name, item in _PART.findall(path)]


def _follow(value: Any, steps: Sequence[tuple[str, bool]]) -> Any:
    for step, is_item in steps:
        value = _item(value, step) if is_item else (value.get(step) if isinstance(value, Mapping) else None)
    return value


def _item(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(step.strip('"'))
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    if step.isdecimal():
        return value[int(step)] if int(step) < len(value) else None
    keys = dict(_KEYED.findall(step))
    return next(
        (
            item
            for item in value
            if isinstance(item, Mapping) and keys and all(str(item.get(key)) == wanted for key, wanted in keys.items())
        ),
        None,
    )


def _named(template: Any, steps: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Return the steps with list items named by their merge key, as in all messages about podTemplate."""
    named: list[tuple[str, bool]] = []
    value, field = template, ""
    for step, is_item in steps:
        inner = _item(value, step) if is_item else (value.get(step) if isinstance(value, Mapping) else None)
        shown = step.strip('"')
        key = MERGE_KEYS.get(field)
        if is_item and isinstance(value, Sequence) and key and isinstance(inner, Mapping) and key in inner:
            shown = STAGE_CONTAINER if field == "containers" else str(inner[key])
        named.append((shown, is_item))
        value, field = inner, field if is_item else step
    return named


def _is_written(part: Any, steps: Sequence[tuple[str, bool]]) -> bool:
    """Return whether the user's template has a value at the path, or the named item that lacks a field."""
    field, is_named = "", False
    for number, (step, is_item) in enumerate(steps):
        if is_item and isinstance(part, list):
            part = _item(part, f"{MERGE_KEYS[field]}={step}" if field in MERGE_KEYS else step)
        elif isinstance(part, Mapping):
            part = part.get(step)
        else:
            return False
        if part is None:
            return is_named and number == len(steps) - 1
        is_named = is_item and field != "containers"
        field = field if is_item else step
    return True
