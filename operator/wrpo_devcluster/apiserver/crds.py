"""CustomResourceDefinitions: what makes one acceptable, and its conditions."""

from __future__ import annotations

from wrpo_devcluster.apiserver import crd_schema
from wrpo_devcluster.apiserver.errors import Cause, forbidden_field, invalid_field, required_field, unsupported_field
from wrpo_devcluster.apiserver.validate_meta import LABEL, SUBDOMAIN
from wrpo_devcluster.client import JsonObject

_COLUMN_TYPES = frozenset({"integer", "number", "string", "boolean", "date"})
CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


def validate(crd: JsonObject) -> list[Cause]:
    spec = crd["spec"]
    names = spec.get("names") or {}
    causes: list[Cause] = []
    if crd["metadata"]["name"] != f"{names.get('plural', '')}.{spec.get('group', '')}":
        causes.append(
            invalid_field("metadata.name", crd["metadata"]["name"], 'must be spec.names.plural+"."+spec.group')
        )
    if not SUBDOMAIN.match(spec.get("group", "")) or "." not in spec.get("group", ""):
        causes.append(invalid_field("spec.group", spec.get("group", ""), "should be a domain with at least one dot"))
    if spec.get("scope") not in {"Namespaced", "Cluster"}:
        causes.append(unsupported_field("spec.scope", spec.get("scope", ""), ("Cluster", "Namespaced")))
    causes += _validate_names(names)
    versions = spec.get("versions") or []
    if not versions:
        causes.append(required_field("spec.versions", "must have exactly one version marked as storage version"))
    elif sum(bool(version.get("storage")) for version in versions) != 1:
        causes.append(
            invalid_field(
                "spec.versions",
                [v.get("name") for v in versions],
                "must have exactly one version marked as storage version",
            )
        )
    if len({version.get("name") for version in versions}) != len(versions):
        causes.append(
            invalid_field("spec.versions", [v.get("name") for v in versions], "must contain unique version names")
        )
    schemas = [(version.get("schema") or {}).get("openAPIV3Schema") for version in versions]
    # A schema that all versions share stands above them in the server's own form of a CRD.
    where = "spec.validation.openAPIV3Schema" if all(one == schemas[0] for one in schemas) else ""
    for index, version in enumerate(versions):
        causes += _validate_version(version, f"spec.versions[{index}]", where)
    if (spec.get("conversion") or {}).get("strategy") == "Webhook":
        causes.append(
            forbidden_field(
                "spec.conversion.strategy", "conversion webhooks are not supported by this server; use None"
            )
        )
    return causes


def _validate_names(names: JsonObject) -> list[Cause]:
    causes = []
    for name in ("plural", "singular", "kind", "listKind"):
        value = names.get(name, "")
        if not value:
            causes.append(required_field(f"spec.names.{name}"))
        elif not LABEL.match(value.lower()):
            causes.append(
                invalid_field(
                    f"spec.names.{name}",
                    value,
                    "a DNS-1035 label must consist of lower case alphanumeric characters or '-'",
                )
            )
    return causes


def _validate_version(version: JsonObject, path: str, where: str) -> list[Cause]:
    causes: list[Cause] = []
    if not LABEL.match(version.get("name", "")):
        causes.append(
            invalid_field(
                f"{path}.name",
                version.get("name", ""),
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-'",
            )
        )
    raw = (version.get("schema") or {}).get("openAPIV3Schema")
    if raw is None:
        causes.append(required_field(f"{path}.schema.openAPIV3Schema", "schemas are required"))
        return causes
    if where and path != "spec.versions[0]":
        return causes
    causes += crd_schema.validate(raw, where or f"{path}.schema.openAPIV3Schema")
    columns = version.get("additionalPrinterColumns") or ()
    for index, column in enumerate(columns):
        causes += _column(column, f"{'spec' if where else path}.additionalPrinterColumns[{index}]")
    return causes


def _column(column: JsonObject, at: str) -> list[Cause]:
    causes = [required_field(f"{at}.name")] if not column.get("name") else []
    kind, path = column.get("type") or "", column.get("jsonPath") or ""
    told = f"must be one of {','.join(sorted(_COLUMN_TYPES))}"
    if not kind:
        causes.append(required_field(f"{at}.type", told))
    elif kind not in _COLUMN_TYPES:
        causes.append(invalid_field(f"{at}.type", kind, told))
    if not path:
        causes.append(required_field(f"{at}.JSONPath"))
    elif not path.startswith("."):
        causes.append(invalid_field(f"{at}.JSONPath", path, "must be a simple json path starting with ."))
    return causes


def validate_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    causes = [
        invalid_field(f"spec.{name}", new["spec"].get(name), "field is immutable")
        for name in ("group", "scope")
        if new["spec"].get(name) != old["spec"].get(name)
    ]
    for name in ("plural", "kind"):
        if new["spec"]["names"].get(name) != old["spec"]["names"].get(name):
            causes.append(invalid_field(f"spec.names.{name}", new["spec"]["names"].get(name), "field is immutable"))  # noqa: PERF401
    served = {version["name"] for version in new["spec"]["versions"]}
    missing = [version for version in (old["status"].get("storedVersions") or ()) if version not in served]
    if missing:
        causes.append(invalid_field("status.storedVersions", missing, "must appear in spec.versions"))
    return causes


def initial_status(crd: JsonObject) -> JsonObject:
    stored = [version["name"] for version in crd["spec"]["versions"] if version.get("storage")]
    return {"conditions": None, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}


def established(crd: JsonObject, now: str) -> JsonObject:
    """Status of a CRD whose names were accepted."""
    names = crd["spec"]["names"]
    old = {c["type"]: c for c in crd["status"].get("conditions") or ()}

    def condition(kind: str, reason: str, message: str) -> JsonObject:
        if old.get(kind, {}).get("status") == "True":
            return dict(old[kind])
        return {"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message}

    conditions = [
        condition("NamesAccepted", "NoConflicts", "no conflicts found"),
        condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    ]
    accepted = {key: value for key, value in names.items() if value not in (None, [], "")}
    stored = list(crd["status"].get("storedVersions") or ())
    stored += [v["name"] for v in crd["spec"]["versions"] if v.get("storage") and v["name"] not in stored]
    return {"conditions": conditions, "acceptedNames": accepted, "storedVersions": stored}


def terminating(crd: JsonObject, now: str) -> JsonObject:
    """Return the CRD as a delete request leaves it until its objects are gone."""
    condition = {
        "type": "Terminating",
        "status": "True",
        "lastTransitionTime": now,
        "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    }
    kept = [c for c in crd["status"].get("conditions") or () if c["type"] != "Terminating"]
    finalizers = list(crd["metadata"].get("finalizers") or ())
    if CLEANUP_FINALIZER not in finalizers:
        finalizers.append(CLEANUP_FINALIZER)
    return {
        **crd,
        "metadata": {**crd["metadata"], "deletionTimestamp": now, "finalizers": finalizers},
        "status": {**crd["status"], "conditions": [*kept, condition]},
    }


def deletion_in_progress(crd: JsonObject) -> JsonObject:
    """Status of a CRD whose objects are being deleted."""
    told = {"reason": "InstanceDeletionInProgress", "message": "CustomResource deletion is in progress"}
    conditions = [
        {**condition, **told} if condition["type"] == "Terminating" else condition
        for condition in crd["status"].get("conditions") or ()
    ]
    return {**crd["status"], "conditions": conditions}
