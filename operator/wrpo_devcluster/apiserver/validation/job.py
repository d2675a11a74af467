"""Validation of Jobs."""

from __future__ import annotations

from wrpo_devcluster.apiserver.apis.errors import (
    Cause,
    forbidden_field,
    invalid_field,
    required_field,
    unsupported_field,
)
from wrpo_devcluster.apiserver.schema.typed import same
from wrpo_devcluster.apiserver.validation.metadata import labels
from wrpo_devcluster.apiserver.validation.pod import pod_spec
from wrpo_devcluster.client import JsonObject

_COUNTS = (
    "parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes",
    "ttlSecondsAfterFinished",
)  # fmt: skip
_IMMUTABLE = ("selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy")
_SCHEDULING = {"nodeSelector", "affinity", "tolerations", "schedulingGates"}


def validate_job(obj: JsonObject) -> list[Cause]:
    """Return the faults of a Job, its template included."""
    spec = obj["spec"]
    causes: list[Cause] = []
    for name in _COUNTS:
        if spec.get(name) is not None and spec[name] < 0:
            causes.append(invalid_field(f"spec.{name}", spec[name], "must be greater than or equal to 0"))  # noqa: PERF401
    causes += _indexed(spec)
    template = spec["template"]
    causes += labels((template.get("metadata") or {}).get("labels") or {}, "spec.template.labels")
    causes += pod_spec(template["spec"], "spec.template.spec")
    restart = template["spec"].get("restartPolicy")
    if restart == "Always":
        causes.append(required_field("spec.template.spec.restartPolicy", 'valid values: "OnFailure", "Never"'))
    causes += _failure_policy(spec, restart)
    replacement = spec.get("podReplacementPolicy")
    if replacement not in {"Failed", "TerminatingOrFailed"}:
        causes.append(unsupported_field("spec.podReplacementPolicy", replacement, ("Failed", "TerminatingOrFailed")))
    return causes


def _indexed(spec: JsonObject) -> list[Cause]:
    causes: list[Cause] = []
    mode = spec.get("completionMode")
    indexed = mode == "Indexed"
    if mode not in {"NonIndexed", "Indexed"}:
        causes.append(unsupported_field("spec.completionMode", mode, ("NonIndexed", "Indexed")))
    if indexed and spec.get("completions") is None:
        causes.append(required_field("spec.completions", f"when completion mode is {mode}"))
    if indexed and (spec.get("parallelism") or 0) > 100_000:
        causes.append(
            invalid_field(
                "spec.parallelism",
                spec["parallelism"],
                "must be less than or equal to 100000 when completion mode is Indexed",
            )
        )
    if not indexed:
        for name in ("backoffLimitPerIndex", "maxFailedIndexes"):
            if spec.get(name) is not None:
                causes.append(invalid_field(f"spec.{name}", spec[name], "requires indexed completion mode"))  # noqa: PERF401
        if spec.get("successPolicy") is not None:
            causes.append(
                invalid_field("spec.successPolicy", spec["successPolicy"], "requires indexed completion mode")
            )
    elif spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        causes.append(required_field("spec.backoffLimitPerIndex", "when maxFailedIndexes is specified"))
    return causes


def _failure_policy(spec: JsonObject, restart: str | None) -> list[Cause]:
    policy = spec.get("podFailurePolicy")
    if policy is None:
        return []
    causes: list[Cause] = []
    if restart != "Never":
        why = 'only "Never" is supported when podFailurePolicy is specified'
        causes.append(invalid_field("spec.template.spec.restartPolicy", restart, why))
    if spec.get("podReplacementPolicy") == "TerminatingOrFailed":
        causes.append(unsupported_field("spec.podReplacementPolicy", "TerminatingOrFailed", ("Failed",)))
    names = {
        container.get("name")
        for group in ("containers", "initContainers")
        for container in spec["template"]["spec"].get(group) or ()
    }
    for index, rule in enumerate(policy.get("rules") or ()):
        causes += _failure_rule(rule, f"spec.podFailurePolicy.rules[{index}]", names, spec)
    return causes


def _failure_rule(rule: JsonObject, path: str, names: set[str | None], spec: JsonObject) -> list[Cause]:
    causes: list[Cause] = []
    actions = ("Count", "FailIndex", "FailJob", "Ignore")
    if not rule.get("action"):
        causes.append(required_field(f"{path}.action", f"valid values: {list(actions)}"))
    elif rule["action"] not in actions:
        causes.append(unsupported_field(f"{path}.action", rule["action"], actions))
    elif rule["action"] == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
        why = "requires the backoffLimitPerIndex to be set"
        causes.append(invalid_field(f"{path}.action", rule["action"], why))
    codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
    if codes is not None and conditions:
        why = "specifying both OnExitCodes and OnPodConditions is not supported"
        causes.append(invalid_field(path, rule, why))
    elif codes is None and not conditions:
        causes.append(invalid_field(path, rule, "specifying one of OnExitCodes and OnPodConditions is required"))
    if codes is not None:
        causes += _exit_codes(codes, f"{path}.onExitCodes", names)
    for index, pattern in enumerate(conditions or ()):
        if pattern.get("status") not in {"True", "False", "Unknown"}:
            at = f"{path}.onPodConditions[{index}].status"
            causes.append(unsupported_field(at, pattern.get("status"), ("False", "True", "Unknown")))
    return causes


def _exit_codes(codes: JsonObject, path: str, names: set[str | None]) -> list[Cause]:
    causes: list[Cause] = []
    operator = codes.get("operator")
    if operator not in {"In", "NotIn"}:
        causes.append(unsupported_field(f"{path}.operator", operator, ("In", "NotIn")))
    if codes.get("containerName") is not None and codes["containerName"] not in names:
        why = "must be one of the container or initContainer names in the pod template"
        causes.append(invalid_field(f"{path}.containerName", codes["containerName"], why))
    values = codes.get("values") or []
    if not values:
        causes.append(invalid_field(f"{path}.values", values, "at least one value is required"))
    elif len(values) > 255:
        causes.append(
            Cause("FieldValueTooMany", f"{path}.values", f"Too many: {len(values)}: must have at most 255 items")
        )
    if values != sorted(values):
        causes.append(invalid_field(f"{path}.values", values, "must be ordered"))
    for index, value in enumerate(values):
        if values.index(value) != index:
            causes.append(Cause("FieldValueDuplicate", f"{path}.values[{index}]", f"Duplicate value: {value}"))
        if operator == "In" and value == 0:
            causes.append(invalid_field(f"{path}.values[{index}]", 0, "must not be 0 for the In operator"))
    return causes


def validate_job_update(new: JsonObject, old: JsonObject) -> list[Cause]:
    """Return the faults of a change of a Job, most of whose fields are immutable."""
    after, before = new["spec"], old["spec"]
    causes: list[Cause] = []
    if not same(after.get("completions"), before.get("completions")):
        # An Indexed Job may be resized when both counts change together (elastic Jobs).
        elastic = after.get("completionMode") == "Indexed" and after.get("completions") == after.get("parallelism")
        if not elastic:
            causes.append(invalid_field("spec.completions", after.get("completions"), "field is immutable"))
    causes += [
        invalid_field(f"spec.{name}", after.get(name), "field is immutable")
        for name in _IMMUTABLE
        if not same(after.get(name), before.get(name))
    ]
    frozen, was = _frozen(after["template"], old), _frozen(before["template"], old)
    if not same(frozen, was):
        is_of_spec = _is_unstarted(old) and same(frozen["metadata"], was["metadata"])
        path = "spec.template.spec" if is_of_spec else "spec.template"
        causes.append(invalid_field(path, after["template"], "field is immutable"))
    if before.get("suspend") is True and not after.get("suspend") and old["metadata"].get("deletionTimestamp"):
        causes.append(forbidden_field("spec.suspend", "a job being deleted cannot be resumed"))
    return causes


def _is_unstarted(job: JsonObject) -> bool:
    """Return whether a Job is suspended and has never run."""
    return bool(job["spec"].get("suspend")) and (job.get("status") or {}).get("startTime") is None


def _frozen(template: JsonObject, old: JsonObject) -> JsonObject:
    """Return the template without the fields that a suspended Job that never started may change."""
    if not _is_unstarted(old):
        return template
    meta = {k: v for k, v in (template.get("metadata") or {}).items() if k not in {"labels", "annotations"}}
    spec = {key: value for key, value in template["spec"].items() if key not in _SCHEDULING}
    spec["containers"] = [{**container, "resources": {}} for container in spec.get("containers") or ()]
    return {"metadata": meta, "spec": spec}
