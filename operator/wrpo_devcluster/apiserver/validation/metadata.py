"""Validation of names, labels, annotations, finalizers and owner references."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from wrpo_devcluster.apiserver.apis.errors import Cause, forbidden_field, invalid_field, required_field
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.client import JsonObject

LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_LABEL_1035 = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start"
    " and end with an alphanumeric character (e.g. 'example.com', regex used for validation is"
    " '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end"
    " with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is"
    " '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
LABEL_1035_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic"
    " character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation"
    " is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_QUALIFIED_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric"
    " character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is"
    " '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and"
    " end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is"
    " '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_ANNOTATION_BYTES = 256 * 1024


def dns_label(value: str, field: str) -> list[Cause]:
    """Return the faults of a DNS label (RFC 1123), as namespaces and containers are named."""
    if not LABEL.match(value):
        return [invalid_field(field, value, _LABEL_RULE)]
    return [invalid_field(field, value, "must be no more than 63 bytes")] if len(value) > 63 else []


def is_label_1035(value: str) -> bool:
    """Return whether a text is a label that begins with a letter."""
    return _LABEL_1035.match(value) is not None and len(value) <= 63


def label_1035(value: str, field: str) -> list[Cause]:
    """Return the faults of a label that has to begin with a letter."""
    return [] if is_label_1035(value) else [invalid_field(field, value, LABEL_1035_RULE)]


def dns_subdomain(value: str, field: str) -> list[Cause]:
    """Return the faults of a DNS subdomain (RFC 1123), as most objects are named."""
    if not SUBDOMAIN.match(value):
        return [invalid_field(field, value, _SUBDOMAIN_RULE)]
    return [invalid_field(field, value, "must be no more than 253 bytes")] if len(value) > 253 else []


def object_name(kind: Kind, name: str) -> list[Cause]:
    """Return the faults of an object's name, by the rule of its kind."""
    field = "metadata.name"
    if kind.group == "rbac.authorization.k8s.io":
        bad = name in {".", ".."} or "/" in name or "%" in name
        return [invalid_field(field, name, "may not be '.' or '..', and may not contain '/' or '%'")] if bad else []
    if (kind.group, kind.kind) == ("", "Namespace"):
        return dns_label(name, field)
    if (kind.group, kind.kind) == ("", "Service"):
        return label_1035(name, field)
    return dns_subdomain(name, field)


def qualified_name(value: str, field: str) -> list[Cause]:
    """Return the faults of the key of a label or annotation: a name, with a domain before a slash if any."""
    prefix, slash, name = value.rpartition("/")
    faults: list[str] = []
    if slash and not prefix:
        faults.append("prefix part must be non-empty")
    elif slash and not SUBDOMAIN.match(prefix):
        return [invalid_field(field, value, f"prefix part {_SUBDOMAIN_RULE}")]
    if not name:
        faults.append("name part must be non-empty")
    elif len(name) > 63:
        faults.append("name part must be no more than 63 bytes")
    if not _QUALIFIED.match(name):
        faults.append(_QUALIFIED_RULE)
    return [invalid_field(field, value, fault) for fault in faults]


def labels(found: dict[str, str], field: str) -> list[Cause]:
    """Return the faults of all keys and values of a map of labels."""
    causes: list[Cause] = []
    for key, value in found.items():
        causes += qualified_name(key, field)
        causes += label_value(value, field)
    return causes


def label_value(value: str, field: str) -> list[Cause]:
    """Return the faults of a label's value."""
    if not _LABEL_VALUE.match(value):
        return [invalid_field(field, value, _VALUE_RULE)]
    return [invalid_field(field, value, "must be no more than 63 bytes")] if len(value) > 63 else []


def label_selector(selector: JsonObject | None, field: str) -> list[Cause]:
    """Return the faults of a metav1.LabelSelector; None has no faults."""
    if selector is None:
        return []
    causes = labels(selector.get("matchLabels") or {}, f"{field}.matchLabels")
    for index, requirement in enumerate(selector.get("matchExpressions") or ()):
        at, operator = f"{field}.matchExpressions[{index}]", requirement.get("operator", "")
        values = requirement.get("values") or ()
        if operator in {"In", "NotIn"}:
            if not values:
                why = "must be specified when `operator` is 'In' or 'NotIn'"
                causes.append(required_field(f"{at}.values", why))
        elif operator not in {"Exists", "DoesNotExist"}:
            causes.append(invalid_field(f"{at}.operator", operator, "not a valid selector operator"))
        elif values:
            why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            causes.append(forbidden_field(f"{at}.values", why))
        causes += qualified_name(requirement.get("key", ""), f"{at}.key")
        for at_value, value in enumerate(values):
            causes += label_value(value, f"{at}.values[{at_value}]")
    return causes


def metadata(kind: Kind, meta: JsonObject, before: JsonObject | None = None) -> list[Cause]:
    """Return the faults of a new or updated object's metadata. Parts equal to `before` were valid when stored."""
    before = before or {}
    causes: list[Cause] = []
    if not meta.get("name"):
        causes.append(required_field("metadata.name", "name or generateName is required"))
    elif meta["name"] != before.get("name"):
        causes += object_name(kind, meta["name"])
    if meta.get("labels") != before.get("labels"):
        causes += labels(meta.get("labels") or {}, "metadata.labels")
    if meta.get("annotations") != before.get("annotations"):
        causes += _annotations(meta.get("annotations") or {})
    if meta.get("finalizers") != before.get("finalizers"):
        causes += _finalizers(meta.get("finalizers") or (), must_be_qualified=kind.custom is None)
    if meta.get("ownerReferences") != before.get("ownerReferences"):
        causes += _owners(meta.get("ownerReferences") or ())
    return causes


def _annotations(annotations: dict[str, str]) -> list[Cause]:
    causes: list[Cause] = []
    for key in annotations:
        causes += qualified_name(key.lower(), "metadata.annotations")
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _ANNOTATION_BYTES:
        causes.append(
            Cause(
                "FieldValueTooLong", "metadata.annotations", f"Too long: may not be more than {_ANNOTATION_BYTES} bytes"
            )
        )
    return causes


def _finalizers(finalizers: Iterable[str], *, must_be_qualified: bool) -> list[Cause]:
    causes: list[Cause] = []
    for finalizer in finalizers:
        causes += qualified_name(finalizer, "metadata.finalizers")
        if must_be_qualified and not _is_qualified(finalizer):
            causes.append(
                invalid_field(
                    "metadata.finalizers",
                    finalizer,
                    "name is neither a standard finalizer name nor is it fully qualified",
                )
            )
    return causes


def _is_qualified(finalizer: str) -> bool:
    return "/" in finalizer or finalizer in {"orphan", "foregroundDeletion", "kubernetes"}


def finalizer_warnings(kind: Kind, meta: JsonObject, before: JsonObject | None = None) -> list[str]:
    """Return warnings about new finalizers of custom resources that name no domain. Built-in kinds refuse them."""
    if kind.custom is None:
        return []
    known = (before or {}).get("finalizers") or ()
    why = "prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers"
    return [
        f'metadata.finalizers: "{finalizer}": {why}'
        for finalizer in meta.get("finalizers") or ()
        if finalizer not in known and not _is_qualified(finalizer)
    ]


def _owners(references: Any) -> list[Cause]:
    causes: list[Cause] = []
    controllers = []
    for index, reference in enumerate(references):
        field = f"metadata.ownerReferences[{index}]"
        for name in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(name):
                causes.append(invalid_field(f"{field}.{name}", "", "must not be empty"))  # noqa: PERF401
        if reference.get("controller"):
            controllers.append(reference.get("name"))
    if len(controllers) > 1:
        why = f"Only one reference can have Controller set to true. Found multiple: {controllers}"
        causes.append(invalid_field("metadata.ownerReferences", controllers, why))
    return causes


def metadata_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    """Return the faults of a change of metadata. The server reports each of these twice."""
    causes: list[Cause] = []
    if old.get("deletionTimestamp"):
        added = [f for f in new.get("finalizers") or () if f not in (old.get("finalizers") or ())]
        if added:
            listed = ", ".join(f'"{name}"' for name in added)
            why = f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{listed}}}"  # noqa: E501
            causes.append(forbidden_field("metadata.finalizers", why))
    for name in ("name", "namespace", "uid"):
        if new.get(name) != old.get(name):
            causes.append(invalid_field(f"metadata.{name}", new.get(name), "field is immutable"))  # noqa: PERF401
    return causes * 2
