"""Base of the declarations and the role of each field."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

CONTRACT_VERSION = 1
"""Part of every stage hash: bumping it invalidates all artifacts.

Parameters that have their default are not hashed, so a new optional field re-runs nothing. In return no default may
change within a contract version.
"""


class Role(Enum):
    """Consequence of a change of a field."""

    COMPUTED = "computed"
    """Part of what a stage computes: hashed, so a change re-runs the stage."""
    EXECUTION = "execution"
    """Part of how a stage is run: not hashed, so a change re-runs nothing."""
    OPERATION = "operation"
    """Read by the operator alone, e.g. when stages start and where artifacts are kept: not hashed."""


class Declared(BaseModel):
    """Base of a declaration. `class Fields(Declared, role=...)` gives its own fields a role.

    A single field can have another one: `field: Annotated[int, Role.EXECUTION]`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def __init_subclass__(cls, *, role: Role | None = None, **options: Any) -> None:
        """Accept the role; pydantic's hook below, which runs once the fields are known, assigns it."""
        super().__init_subclass__(**options)

    @classmethod
    def __pydantic_init_subclass__(cls, *, role: Role | None = None, **options: Any) -> None:
        """Assign the role to the class's fields."""
        super().__pydantic_init_subclass__(**options)
        if role is None:
            return
        for name, field in cls.model_fields.items():
            if name in cls.__annotations__ and field_role(field) is None:
                field.metadata.append(role)


class StageParams(Declared):
    """Parameters of one kind of stage. A subclass names the kind: `stage: Literal["KIND"] = "KIND"`."""

    @classmethod
    def kind(cls) -> str:
        """Return the kind: the engine's sub-command and the first part of the artifact's address."""
        return str(cls.model_fields["stage"].default)


def field_role(field: FieldInfo) -> Role | None:
    """Return the role that is stated at a field or at its declaration; None where neither states one."""
    return next((item for item in field.metadata if isinstance(item, Role)), None)


def inherit(field: FieldInfo, declared: FieldInfo) -> None:
    """Give a field that narrows a declared one its description and role, unless it has its own."""
    field.description = field.description or declared.description
    role = field_role(declared)
    if role is not None and field_role(field) is None:
        field.metadata = [*field.metadata, role]


Model = TypeVar("Model", bound=BaseModel)
_UNSET = re.compile(r"\s*\bUnset: .*?\.(?=\s|$)", re.DOTALL)


def overrides(section: str, *declarations: type[BaseModel]) -> Callable[[type[Model]], type[Model]]:
    """Return a class decorator that makes the fields of declarations optional: unset, they take a section's values.

    For the type checker the fields keep their types. Read them by `values_of`, which omits unset fields, not by
    attribute. `section` is the section's name in the spec, e.g. `sampling`.
    """

    def decorate(model: type[Model]) -> type[Model]:
        return _make_optional(model, _names(declarations), lambda alias: f"Unset: {section}.{alias}.")

    return decorate


def automatic(*names: str) -> Callable[[type[Model]], type[Model]]:
    """Return a class decorator that makes fields optional: unset, the operator chooses their values.

    As with `overrides`, read the fields by `values_of`; a parameter that it leaves out keeps its declared default.
    """

    def decorate(model: type[Model]) -> type[Model]:
        return _make_optional(model, names, lambda _alias: "Unset: automatic.")

    return decorate


def _make_optional(model: type[Model], names: Iterable[str], unset: Callable[[str], str]) -> type[Model]:
    """Make fields of a model optional; `unset` says for an alias what holds when the field is unset."""
    for name in sorted(names):
        field = model.model_fields[name]
        kept = [item for item in field.metadata if isinstance(item, Role)]
        limits = [item for item in field.metadata if not isinstance(item, Role)]
        field.annotation = _optional(field.annotation, limits)
        field.metadata = kept
        field.default, field.default_factory = None, None
        field.description = f"{_UNSET.sub('', field.description or '')} {unset(field.alias or name)}"
    model.model_rebuild(force=True)
    return model


def _optional(annotation: Any, limits: list[Any]) -> Any:
    """Return the type or None; the limits are those of the type."""
    return (Annotated[annotation, *limits] if limits else annotation) | None


def _names(declarations: Iterable[type[BaseModel]]) -> set[str]:
    return {name for declaration in declarations for name in declaration.model_fields}


def values_of(section: BaseModel, *declarations: type[BaseModel]) -> dict[str, Any]:
    """Return a section's fields as plain values, those of some declarations or all, without the unset ones."""
    wanted = _names(declarations or (type(section),))
    return {name: value for name, value in section.model_dump(include=wanted).items() if value is not None}


def project(model: type[Model], /, *layers: Mapping[str, Any], **more: Any) -> Model:
    """Return a model whose fields are those of the same names in layers of values, a later layer before an earlier one.

    Values that the model has no field for are left out; what is in no layer has the model's default. `more` is what the
    model has and no layer, or what takes the place of a layer's value.
    """
    found = {name: value for layer in layers for name, value in layer.items() if name in model.model_fields}
    return model.model_validate(found | more)
