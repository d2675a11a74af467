"""Validation of CustomResourceDefinitions except their schemas: names, versions, columns, subresources.

The real server works on an internal form, in which parts that all versions share are above the versions. Faults of
these parts are reported there.
"""

from __future__ import annotations

from typing import Any

from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    duplicate_field,
    forbidden_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.validation import crd_rules, crd_schema
from wrpo_devcluster.apiserver.validation.metadata import LABEL_1035_RULE, dns_subdomain, is_label_1035, label_1035
from wrpo_devcluster.apiserver.values.go_url import UrlError, parse_request_uri
from wrpo_devcluster.client import JsonObject

_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")
_REVIEWS = ("v1", "v1beta1")
_MOST_SELECTABLE = 8
_LONGEST_WARNING = 256
_APPROVED = "api-approved.kubernetes.io"
_SHARED = (
    ("schema", "validation"), ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"), ("selectableFields", "selectableFields"),
)  # fmt: skip
"""Parts of a version, and their names above the versions."""
_AT_THE_ROOT = frozenset(
    {
        "description", "type", "format", "title", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum",
        "maxLength", "minLength", "pattern", "maxItems", "minItems", "uniqueItems", "multipleOf", "required", "items",
        "properties", "externalDocs", "example", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations",
    }
)  # fmt: skip
"""Keywords that the root of a schema may have together with the subresource `status`."""


def validate(crd: JsonObject) -> list[Cause]:
    """Return every fault of a definition."""
    spec, name = crd["spec"], crd["metadata"].get("name")
    names, group, scope = spec.get("names") or {}, spec.get("group") or "", spec.get("scope") or ""
    causes: list[Cause] = []
    if name and name != f"{names.get('plural') or ''}.{group}":
        causes.append(invalid_field("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    causes += _group(group)
    if not scope:
        causes.append(required_field("spec.scope"))
    elif scope not in {"Namespaced", "Cluster"}:
        causes.append(unsupported_field("spec.scope", scope, ("Cluster", "Namespaced")))
    causes += _versions(spec.get("versions") or []) + _names(names)
    if not any(version.get("storage") for version in spec.get("versions") or ()):
        stored = (crd.get("status") or {}).get("storedVersions")
        if not stored:
            causes.append(invalid_field("status.storedVersions", [], "must have at least one stored version"))
    causes += _conversion(spec.get("conversion") or {}) + _approval(crd, group)
    if spec.get("preserveUnknownFields"):
        why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        causes.append(invalid_field("spec.preserveUnknownFields", value=True, why=why))
    return causes


def validate_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    """Return the faults of a change."""
    conditions = (old.get("status") or {}).get("conditions") or ()
    is_established = any(one["type"] == "Established" and one["status"] == "True" for one in conditions)
    spec, before = new["spec"], old["spec"]
    kept = [("group", spec, before), ("names.plural", spec["names"], before["names"])]
    if is_established:
        kept += [("scope", spec, before), ("names.kind", spec["names"], before["names"])]
    causes = []
    for field, now, was in kept:
        name = field.rpartition(".")[2]
        if now.get(name) != was.get(name):
            causes.append(invalid_field(f"spec.{field}", now.get(name), "field is immutable"))
    known = {version["name"] for version in spec.get("versions") or ()}
    for index, version in enumerate((old.get("status") or {}).get("storedVersions") or ()):
        if version not in known:
            why = (
                f"missing from spec.versions; {version} was previously a storage version, and must remain in"
                " spec.versions until a storage migration ensures no data remains persisted in"
                f" {version} and removes {version} from status.storedVersions"
            )
            causes.append(invalid_field(f"status.storedVersions[{index}]", version, why))
    return causes


def _group(group: str) -> list[Cause]:
    if not group:
        return [required_field("spec.group")]
    faults = dns_subdomain(group, "spec.group")
    if faults or "." in group:
        return faults
    return [invalid_field("spec.group", group, "should be a domain with at least one dot")]


def _names(names: JsonObject) -> list[Cause]:
    causes: list[Cause] = []
    for name in ("plural", "singular", "kind", "listKind"):
        value, at = names.get(name) or "", f"spec.names.{name}"
        if not value:
            causes.append(required_field(at))
        elif name in {"plural", "singular"}:
            causes += label_1035(value, at)
        elif not is_label_1035(value.lower()):
            why = f"may have mixed case, but should otherwise match: {LABEL_1035_RULE}"
            causes.append(invalid_field(at, value, why))
    if names.get("kind") and names["kind"] == names.get("listKind"):
        why = "kind and listKind may not be the same"
        causes.append(invalid_field("spec.names.listKind", names["listKind"], why))
    for name in ("shortNames", "categories"):
        for index, value in enumerate(names.get(name) or ()):
            causes += label_1035(value or "", f"spec.names.{name}[{index}]")
    return causes


def _versions(versions: list[JsonObject]) -> list[Cause]:
    called = [version.get("name") or "" for version in versions]
    causes = [
        required_field(f"spec.versions[{index}].schema.openAPIV3Schema", "schemas are required")
        for index, version in enumerate(versions)
        if (version.get("schema") or {}).get("openAPIV3Schema") is None
    ]
    for index, version in enumerate(versions):
        at = f"spec.versions[{index}]"
        causes += label_1035(called[index], f"{at}.name") + _deprecation(version, f"{at}.deprecationWarning")
    if len(set(called)) != len(called):
        causes.append(invalid_field("spec.versions", called, "must contain unique version names"))
    if sum(bool(version.get("storage")) for version in versions) != 1:
        why = "must have exactly one version marked as storage version"
        causes.append(invalid_field("spec.versions", called, why))
    if called and called[0]:
        causes += label_1035(called[0], "spec.version")
    return causes + _parts(versions)


def _parts(versions: list[JsonObject]) -> list[Cause]:
    """Return the faults of the parts of versions. A part that all versions share is checked once."""
    shared = {
        name: above
        for name, above in _SHARED
        if versions and versions[0].get(name) and all(one.get(name) == versions[0][name] for one in versions)
    }
    causes: list[Cause] = []
    for index, version in enumerate(versions):
        at = {
            name: f"spec.{shared[name]}" if name in shared else f"spec.versions[{index}].{name}" for name, _ in _SHARED
        }
        part = {name: version.get(name) for name, _ in _SHARED if name not in shared or index == 0}
        causes += _part(version, part, at)
    return causes


def _part(version: JsonObject, part: dict[str, Any], at: dict[str, str]) -> list[Cause]:
    causes: list[Cause] = []
    raw = (part.get("schema") or {}).get("openAPIV3Schema")
    if raw is not None:
        where = f"{at['schema']}.openAPIV3Schema"
        if (version.get("subresources") or {}).get("status") is not None:
            causes += _root(raw, where)
        causes += crd_schema.validate(raw, where)
    causes += _scale((part.get("subresources") or {}).get("scale"), f"{at['subresources']}.scale")
    for index, column in enumerate(part.get("additionalPrinterColumns") or ()):
        causes += _column(column, f"{at['additionalPrinterColumns']}[{index}]")
    whole = (version.get("schema") or {}).get("openAPIV3Schema")
    return causes + _selectable(part.get("selectableFields") or [], whole, at["selectableFields"])


def _deprecation(version: JsonObject, at: str) -> list[Cause]:
    text = version.get("deprecationWarning")
    if text is None:
        return []
    if not version.get("deprecated"):
        return [invalid_field(at, text, "can only be set for deprecated versions")]
    faults = []
    if len(text.encode()) > _LONGEST_WARNING:
        faults.append(f"must be <= {_LONGEST_WARNING} characters long")
    if not text:
        faults.append("must not be an empty string")
    odd = next((len(text[:index].encode()) for index, one in enumerate(text) if not one.isprintable()), None)
    if odd is not None:
        why = "must only contain printable UTF-8 characters; non-printable character found at index"
        faults.append(f"{why} {odd}")
    return [invalid_field(at, text, why) for why in faults]


def _root(raw: JsonObject, at: str) -> list[Cause]:
    kind = raw.get("type") or ""
    if kind and kind != "object":
        why = 'only "object" is allowed as the type at the root of the schema if the status subresource is enabled'
        return [invalid_field(f"{at}.type", kind, why)]
    rest = {
        name for name, value in raw.items() if value is not None and value is not False and value not in ("", [], {})
    }
    if rest <= _AT_THE_ROOT:
        return []
    why = "fields are allowed at the root of the schema if the status subresource is enabled"
    return [invalid_field(at, raw, f"only [{' '.join(sorted(_AT_THE_ROOT))}] {why}")]


def _simple_path(path: str, at: str) -> list[Cause]:
    return [] if path.startswith(".") else [invalid_field(at, path, "must be a simple json path starting with .")]


def _scale(scale: JsonObject | None, at: str) -> list[Cause]:
    if scale is None:
        return []
    causes: list[Cause] = []
    wanted = {
        "specReplicasPath": ((".spec.",), "should be a json path under .spec"),
        "statusReplicasPath": ((".status.",), "should be a json path under .status"),
        "labelSelectorPath": ((".spec.", ".status."), "should be a json path under either .spec or .status"),
    }
    for name, (beginnings, why) in wanted.items():
        path = scale.get(name) or ""
        if not path:
            causes += [] if name == "labelSelectorPath" else [required_field(f"{at}.{name}")]
        else:
            is_below = path.startswith(beginnings)
            found = _simple_path(path, f"{at}.{name}")
            causes += found or ([] if is_below else [invalid_field(f"{at}.{name}", path, why)])
    return causes


def _column(column: JsonObject, at: str) -> list[Cause]:
    causes = [required_field(f"{at}.name")] if not column.get("name") else []
    kind, path, form = column.get("type") or "", column.get("jsonPath") or "", column.get("format") or ""
    told = f"must be one of {','.join(_COLUMN_TYPES)}"
    if not kind:
        causes.append(required_field(f"{at}.type", told))
    elif kind not in _COLUMN_TYPES:
        causes.append(invalid_field(f"{at}.type", kind, told))
    if form and form not in _COLUMN_FORMATS:
        causes.append(invalid_field(f"{at}.format", form, f"must be one of {','.join(_COLUMN_FORMATS)}"))
    return causes + (_simple_path(path, f"{at}.JSONPath") if path else [required_field(f"{at}.JSONPath")])


def _selectable(fields: list[JsonObject], raw: JsonObject | None, at: str) -> list[Cause]:
    causes: list[Cause] = []
    known: set[str] = set()
    for index, field in enumerate(fields):
        path, where = field.get("jsonPath") or "", f"{at}[{index}].jsonPath"
        if not path:
            causes.append(required_field(where))
            continue
        found, why = crd_rules.follow(path, raw or {}, brackets=False)
        if why:
            causes.append(invalid_field(where, path, f"is an invalid path: {why}"))
            continue
        if path.startswith(".metadata"):
            causes.append(invalid_field(where, path, "must not point to fields in metadata"))
        if found.get("type") not in {"string", "boolean", "integer"}:
            why = "must point to a field of type string, boolean or integer. Enum string fields and strings with"
            causes.append(invalid_field(where, path, f"{why} formats are allowed."))
        if path in known:
            causes.append(duplicate_field(where, path))
        known.add(path)
    if len(known) > _MOST_SELECTABLE:
        told = f"Too many: {len(known)}: must have at most {_MOST_SELECTABLE} items"
        causes.append(Cause("FieldValueTooMany", at, told))
    return causes


def _conversion(conversion: JsonObject) -> list[Cause]:
    strategy, webhook = conversion.get("strategy") or "", conversion.get("webhook") or {}
    config, versions = webhook.get("clientConfig"), webhook.get("conversionReviewVersions") or []
    config_at, versions_at = "spec.conversion.webhookClientConfig", "spec.conversion.conversionReviewVersions"
    if not strategy:
        causes = [required_field("spec.conversion.strategy")]
    elif strategy not in {"None", "Webhook"}:
        causes = [unsupported_field("spec.conversion.strategy", strategy, ("None", "Webhook"))]
    else:
        causes = []
    if strategy != "Webhook":
        why = "should not be set when strategy is not set to Webhook"
        causes += [forbidden_field(config_at, why)] if config is not None else []
        return causes + ([forbidden_field(versions_at, why)] if versions else [])
    if config is None:
        causes.append(required_field(config_at, "required when strategy is set to Webhook"))
    elif (config.get("url") is None) == (config.get("service") is None):
        causes.append(required_field(config_at, "exactly one of url or service is required"))
    causes += _reviews(versions, versions_at)
    why = "conversion webhooks are not supported by this server; use None"
    return causes or [forbidden_field("spec.conversion.strategy", why)]


def _reviews(versions: list[str], at: str) -> list[Cause]:
    if not versions:
        return [required_field(at)]
    causes: list[Cause] = []
    for index, version in enumerate(versions):
        if version in versions[:index]:
            causes.append(invalid_field(f"{at}[{index}]", version, "duplicate version"))
        else:
            causes += label_1035(version, f"{at}[{index}]")
    if not set(versions) & set(_REVIEWS):
        causes.append(invalid_field(at, versions, f"must include at least one of {', '.join(_REVIEWS)}"))
    return causes


def _approval(crd: JsonObject, group: str) -> list[Cause]:
    """Return the faults of a group of the Kubernetes community, which needs a link to its API review."""
    if not f".{group}".endswith((".k8s.io", ".kubernetes.io")):
        return []
    at = f"metadata.annotations[{_APPROVED}]"
    text = (crd["metadata"].get("annotations") or {}).get(_APPROVED) or ""
    told = "protected groups must have approval annotation"
    link = "see https://github.com/kubernetes/enhancements/pull/1111"
    if not text:
        return [required_field(at, f'{told} "{_APPROVED}", {link}')]
    if text.startswith("unapproved"):
        return []
    try:
        url = parse_request_uri(text)
    except UrlError:
        url = None
    if url is not None and url.scheme and url.host:
        return []
    return [invalid_field(at, text, f'{told} "{_APPROVED}" with either a URL or a reason starting with "unapproved"')]
