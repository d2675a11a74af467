"""Rules of the API server for the fields of an experiment other than its spec."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from wrpo_operator.api.names import API_VERSION, KIND, MAX_EXPERIMENT_NAME

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_MOST_ANNOTATIONS = 256 * 1024
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_TEXTS = (
    "name", "generateName", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "selfLink",
)  # fmt: skip
_META = (*_TEXTS, "labels", "annotations", "finalizers", "ownerReferences", "managedFields", "generation",
         "deletionGracePeriodSeconds")  # fmt: skip


def object_errors(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return every fault outside the spec as a sentence that begins with the field's path."""
    return tuple(_faults(document))


def _faults(document: Mapping[str, Any]) -> Iterator[str]:
    if document.get("apiVersion") != API_VERSION:
        yield f"apiVersion is {_shown(document.get('apiVersion'))}; set it to {API_VERSION}."
    if document.get("kind") != KIND:
        yield f"kind is {_shown(document.get('kind'))}; set it to {KIND}."
    yield from _unknown(document, _TOP, "")
    if "spec" not in document:
        yield "spec is missing. Set it; `kubectl explain wrpoexperiments.spec` describes it."
    meta = document.get("metadata")
    if not isinstance(meta, Mapping):
        yield f"metadata is {_shown(meta)}; it must be a map with at least a name."
        return
    yield from _unknown(meta, _META, "metadata.")
    yield from _names(meta)
    for field in ("labels", "annotations"):
        yield from _pairs(meta.get(field), f"metadata.{field}")
    yield from _label_values(meta.get("labels"))
    yield from _finalizers(meta.get("finalizers"))


def _unknown(found: Mapping[str, Any], known: tuple[str, ...], path: str) -> Iterator[str]:
    for name in found:
        if name not in known:
            yield f"{path}{name} is not a known field. Check its spelling and place, or remove it."


def _names(meta: Mapping[str, Any]) -> Iterator[str]:
    for field in _TEXTS:
        if meta.get(field) is not None and not isinstance(meta[field], str):
            yield f"metadata.{field} is {_shown(meta[field])}; it must be a text: put it in quotes."
    name, prefix = meta.get("name"), meta.get("generateName")
    if not name and not prefix:
        yield "metadata.name is missing; set it (or generateName)."
    if isinstance(name, str) and name:
        yield from _name("metadata.name", name, name)
    elif isinstance(prefix, str) and prefix:
        # The server adds five characters.
        yield from _name("metadata.generateName", prefix, f"{prefix}xxxxx")
    namespace = meta.get("namespace")
    if isinstance(namespace, str) and namespace and (len(namespace) > 63 or not _LABEL.fullmatch(namespace)):
        yield (
            f"metadata.namespace is {_shown(namespace)}; a namespace has at most 63 lower case letters, digits and `-`,"
            " and begins and ends with a letter or digit."
        )


def _name(field: str, written: str, name: str) -> Iterator[str]:
    if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        yield (
            f"{field} is {_shown(written)}; a name consists of lower case letters, digits, `-` and `.`, and begins and"
            " ends with a letter or digit, as does each part between dots."
        )
    if len(name) > MAX_EXPERIMENT_NAME:
        yield (
            f"{field} has {len(written)} characters; it is part of labels and may have at most"
            f" {MAX_EXPERIMENT_NAME - len(name) + len(written)}."
        )


def _pairs(found: Any, path: str) -> Iterator[str]:
    """Yield faults of keys and types, which labels and annotations have in common."""
    if found is None:
        return
    if not isinstance(found, Mapping):
        yield f"{path} is {_shown(found)}; it must be a map of texts."
        return
    for key, value in found.items():
        if not _is_qualified(str(key)):
            yield (
                f"{path}: key {_shown(key)} is no qualified name; use letters, digits, `-`, `_` and `.` (63 at most),"
                " with a DNS name and `/` in front if you like."
            )
        if not isinstance(value, str):
            yield f"{path}.{key} is {_shown(value)}; it must be a text: put it in quotes."
    total = sum(len(str(key).encode()) + len(str(value).encode()) for key, value in found.items())
    if path.endswith("annotations") and total > _MOST_ANNOTATIONS:
        yield f"{path} has {total} bytes; all annotations together may have {_MOST_ANNOTATIONS}. Shorten them."


def _label_values(found: Any) -> Iterator[str]:
    for key, value in found.items() if isinstance(found, Mapping) else ():
        if isinstance(value, str) and value and (len(value) > 63 or not _QUALIFIED.fullmatch(value)):
            yield (
                f"metadata.labels.{key} is {_shown(value)}; a label's value has at most 63 letters, digits, `-`, `_`"
                " and `.`, and begins and ends with a letter or digit."
            )


def _finalizers(found: Any) -> Iterator[str]:
    for index, name in enumerate(found if isinstance(found, list) else ()):
        if not isinstance(name, str) or not _is_qualified(name):
            yield f"metadata.finalizers[{index}] is {_shown(name)}; it must be a name such as example.com/hold."


def _is_qualified(text: str) -> bool:
    prefix, slash, name = text.rpartition("/")
    if slash and (not prefix or len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)):
        return False
    return 0 < len(name) <= 63 and _QUALIFIED.fullmatch(name) is not None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
