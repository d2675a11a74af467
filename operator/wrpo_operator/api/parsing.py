"""Parsing of a WRPOExperiment's spec, and sentences about what is wrong with one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from wrpo_operator.api.depth import MAX_DEPTH, too_deep
from wrpo_operator.api.names import PLURAL
from wrpo_operator.api.pod_template import STRICT, PodTemplatePolicy, protected_field_errors
from wrpo_operator.api.rules import broken_rules
from wrpo_operator.api.spec import ExperimentSpec

Spec = TypeVar("Spec", bound=BaseModel)

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
"""A string of JSON, with its quotes."""
_SUBJECT = re.compile(r"^[A-Z][a-z]+ should ")


class SpecError(ValueError):
    """A spec that cannot be accepted; `errors` holds one sentence per fault."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


def parse_spec(raw: Mapping[str, Any], policy: PodTemplatePolicy = STRICT) -> ExperimentSpec:
    """Parse a spec as the API server does: structure first, then the rules of `rules.py`, then protected fields.

    `policy` is the installation's. Raises SpecError with all errors found at the first level that has any.
    """
    spec = parse_structure(ExperimentSpec, raw, PLURAL)
    errors = (*broken_rules(spec), *protected_field_errors(spec.pod_template, policy))
    if errors:
        raise SpecError(errors)
    return spec


def parse_structure(model: type[Spec], raw: Mapping[str, Any], plural: str) -> Spec:
    """Parse a spec by its fields alone, of a resource whose plural name is `plural`. Raises SpecError."""
    deep = too_deep(raw, "spec")
    if deep:
        raise SpecError((f"{deep} nests deeper than {MAX_DEPTH} levels, which no field needs. Remove it.",))
    try:
        return model.model_validate_json(json.dumps(raw), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise SpecError(_structural_errors(error, raw, plural)) from error


def _structural_errors(error: Exception, raw: Any, plural: str) -> tuple[str, ...]:
    """Return one sentence for each fault that pydantic found in a spec; each begins with the field's path."""
    if not isinstance(error, ValidationError):
        return (f"spec is not a JSON object of the expected form: {error}",)
    return tuple(dict.fromkeys(_describe(details, raw, plural) for details in error.errors(include_url=False)))


def _path(details: Mapping[str, Any], raw: Any) -> str:
    """Return the user's path to a fault, without pydantic's names of union members."""
    path, now, parts = "spec", raw, details["loc"]
    for place, part in enumerate(parts):
        if isinstance(part, int) and isinstance(now, list) and part < len(now):
            path, now = f"{path}[{part}]", now[part]
        elif isinstance(now, Mapping) and (part in now or (details["type"] == "missing" and place == len(parts) - 1)):
            path, now = f"{path}.{part}", now.get(part)
    return path


def _mask_user_info(string: re.Match[str]) -> str:
    """Replace what a URL in a JSON string has before its host; linear, because a value can have a megabyte."""
    before, at, host = string[0].rpartition("@")
    scheme, colon, _ = before.partition(":")
    if not at or not colon:
        return string[0]
    return scheme[: 1 + max(map(scheme.rfind, ' "/'))] + "***@" + host


def _describe(details: Mapping[str, Any], raw: Any, plural: str) -> str:
    path = _path(details, raw)
    match details["type"]:
        case "missing":
            return f"{path} is missing. Set it; `kubectl explain {plural}.{path}` describes it."
        case "extra_forbidden":
            return f"{path} is not a known field. Check its spelling and place, or remove it."
        case _:
            # A malformed URL can hold a password, which must not reach status, events and logs.
            value = _STRING.sub(_mask_user_info, json.dumps(details["input"], default=str))
            shown = value if len(value) <= 80 else value[:77] + "..."
            return f"{path} is {shown}: {_rule(details['msg'])}."


def _rule(text: str) -> str:
    """Return the rule of a pydantic message, without pydantic's names of values and validation steps."""
    return _SUBJECT.sub("it must ", text.removeprefix("Value error, ")).replace(" after validation", "")
