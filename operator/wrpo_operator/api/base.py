"""Base classes and types of the API models: camelCase names, documented fields, finite numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Self

from annotated_types import MaxLen
from pydantic import BaseModel, ConfigDict, PlainValidator, StringConstraints, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

from wrpo_engine.contract.base import Declared, Role, inherit

LABEL_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
SUBDOMAIN_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=SUBDOMAIN_PATTERN)]


def _quantity(value: Any) -> int | str:
    """Validate a quantity in one step, because pydantic would report one error per union member."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and len(value) <= 32 and re.fullmatch(QUANTITY_PATTERN[1:-1], value, re.ASCII):
        return value
    raise ValueError("write a quantity of at least 0: an integer, or a text such as 500m, 1.5 or 8Gi")


Quantity = Annotated[
    int | str,
    PlainValidator(_quantity),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "maxLength": 32,
        }
    ),
]
FreeObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]


def list_map(*keys: str) -> dict[str, Any]:
    """Return the schema extension of a list whose items `keys` identify; the API server refuses duplicates."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


class SpecModel(Declared):
    """A part of the spec, parsed as strictly as the API server does.

    A field that narrows one of a declaration keeps its description and its role, unless it has its own.
    """

    model_config = ConfigDict(alias_generator=to_camel)

    @classmethod
    def __pydantic_init_subclass__(cls, *, role: Role | None = None, **options: Any) -> None:
        """Inherit descriptions and roles from the declarations."""
        super().__pydantic_init_subclass__(role=role, **options)
        narrowed = [
            (field, base.model_fields[name])
            for base in cls.__bases__
            if issubclass(base, BaseModel)
            for name, field in cls.model_fields.items()
            if name in cls.__annotations__ and name in base.model_fields
        ]
        for field, declared in narrowed:
            inherit(field, declared)
        if narrowed:
            cls.model_rebuild(force=True)


TIME: dict[str, Any] = {"format": "date-time"}
"""Schema extension of a time."""
MIN_YEAR, MAX_YEAR = 1, 9000


class StatusModel(BaseModel):
    """A part of the status. Unknown fields of a newer version are dropped, not refused.

    Texts are truncated to the maximum length of their field, because a status that exceeds it could not be written.
    """

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _put_right(cls, values: Any) -> Any:
        return sound_times(cls, cut_texts(cls, values)) if isinstance(values, Mapping) else values

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with changes, truncated as in a new object."""
        return super().model_copy(update=cut_texts(type(self), update) if update else update, deep=deep)


def cut_texts(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a model's fields, by name or alias, with texts truncated to the fields' maximum lengths."""
    limits = _lengths(model)
    return {
        name: f"{value[: limits[name] - 1]}…"
        if isinstance(value, str) and name in limits and len(value) > limits[name]
        else value
        for name, value in values.items()
    }


def sound_times(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without invalid times, which manual edits can contain."""
    times = _times(model)
    return {name: value for name, value in values.items() if name not in times or value is None or is_time(value)}


def is_time(value: object) -> bool:
    """Return whether a value is a time with a zone, in a year to which durations can be added."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return False
    return found is not None and found.tzinfo is not None and MIN_YEAR < found.year < MAX_YEAR


@cache
def _times(model: type[BaseModel]) -> frozenset[str]:
    found = {name for name, field in model.model_fields.items() if field.json_schema_extra == TIME}
    return frozenset(found | {to_camel(name) for name in found})


@cache
def _lengths(model: type[BaseModel]) -> dict[str, int]:
    found = {
        name: limit.max_length
        for name, field in model.model_fields.items()
        for limit in field.metadata
        if isinstance(limit, MaxLen)
    }
    return found | {to_camel(name): length for name, length in found.items()}
