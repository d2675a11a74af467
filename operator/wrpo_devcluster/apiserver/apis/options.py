"""Validation of the query options of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.errors import Cause

TRUE = frozenset({"true", "1", "True", "t", "T", "TRUE"})
_MANAGER_BYTES = 128
_LEVELS = ("Strict", "Warn", "Ignore")
_PROPAGATIONS = ("Foreground", "Background", "Orphan")
_EXACT, _NOT_OLDER = "Exact", "NotOlderThan"
_MATCH = "resourceVersionMatch"
_OPTIONS_OF = {"POST": "CreateOptions", "PUT": "UpdateOptions", "PATCH": "PatchOptions", "DELETE": "DeleteOptions"}


def refuse(kind: str, causes: list[Cause]) -> None:
    """Raise Invalid for options of `kind` (CreateOptions, ListOptions, ...) unless `causes` is empty."""
    if causes:
        raise errors.invalid(kind, "meta.k8s.io", "", causes)


def integer(query: Mapping[str, str], name: str) -> int:
    """Return an integer of the query, 0 if absent."""
    text = query.get(name, "") or "0"
    if not text.removeprefix("-").isdigit():
        raise errors.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def check_write(method: str, query: Mapping[str, str], *, is_apply: bool = False) -> None:
    """Refuse bad options of a create, update or patch."""
    causes: list[Cause] = []
    manager = query.get("fieldManager", "")
    if is_apply and not manager:
        causes.append(errors.required_field("fieldManager", "is required for apply patch"))
    if method == "PATCH" and not is_apply and "force" in query:
        causes.append(errors.forbidden_field("force", "may not be specified for non-apply patch"))
    if len(manager.encode()) > _MANAGER_BYTES:
        causes.append(Cause("FieldValueTooLong", "fieldManager", "Too long: may not be more than 128 bytes"))
    elif not manager.isprintable():
        causes.append(errors.invalid_field("fieldManager", manager, "should only contain printable characters"))
    causes += _dry_run([query["dryRun"]] if query.get("dryRun") else ())
    level = query.get("fieldValidation", "")
    if level and level not in _LEVELS:
        causes.append(errors.unsupported_field("fieldValidation", level, ("", "Ignore", "Strict", "Warn")))
    refuse(_OPTIONS_OF.get(method, "CreateOptions"), causes)


def check_delete(options: Mapping[str, Any]) -> None:
    """Refuse bad metav1.DeleteOptions from the body or the query."""
    causes: list[Cause] = []
    policy = options.get("propagationPolicy")
    if policy is not None and options.get("orphanDependents") is not None:
        why = "orphanDependents and deletionPropagation cannot be both set"
        causes.append(errors.invalid_field("propagationPolicy", policy, why))
    if policy is not None and policy not in _PROPAGATIONS:
        causes.append(errors.unsupported_field("propagationPolicy", policy, (*_PROPAGATIONS, "nil")))
    refuse("DeleteOptions", causes + _dry_run(options.get("dryRun") or ()))


def _dry_run(stages: Sequence[str]) -> list[Cause]:
    if all(stage == "All" for stage in stages):
        return []
    return [errors.unsupported_field("dryRun", list(stages), ("All",))]


def check_list(query: Mapping[str, str]) -> None:
    """Refuse invalid combinations of options of a list."""
    causes: list[Cause] = []
    match = query.get(_MATCH, "")
    if match:
        if not query.get("resourceVersion"):
            causes.append(_forbidden_match(f"{_MATCH} is forbidden unless resourceVersion is provided"))
        if query.get("continue"):
            causes.append(_forbidden_match(f"{_MATCH} is forbidden when continue is provided"))
        if match not in {_EXACT, _NOT_OLDER}:
            causes.append(errors.unsupported_field(_MATCH, match, (_EXACT, _NOT_OLDER, "")))
        if match == _EXACT and query.get("resourceVersion") == "0":
            causes.append(_forbidden_match(f'{_MATCH} "exact" is forbidden for resourceVersion "0"'))
    if "sendInitialEvents" in query:
        causes.append(errors.forbidden_field("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    refuse("ListOptions", causes)


def check_watch(query: Mapping[str, str]) -> None:
    """Refuse invalid combinations of options of a watch."""
    causes: list[Cause] = []
    match = query.get(_MATCH, "")
    has_initial = "sendInitialEvents" in query
    if has_initial and match != _NOT_OLDER:
        causes.append(_forbidden_match(f"sendInitialEvents requires setting {_MATCH} to {_NOT_OLDER}"))
    if match and not has_initial:
        causes.append(_forbidden_match(f"{_MATCH} is forbidden for watch unless sendInitialEvents is provided"))
    if match not in {"", _NOT_OLDER}:
        causes.append(errors.unsupported_field(_MATCH, match, (_NOT_OLDER,)))
    if query.get("continue") and (match or has_initial):
        causes.append(_forbidden_match(f"{_MATCH} is forbidden when continue is provided"))
    refuse("ListOptions", causes)


def _forbidden_match(why: str) -> Cause:
    return errors.forbidden_field(_MATCH, why)
