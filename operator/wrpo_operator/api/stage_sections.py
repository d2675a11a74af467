"""Sections of the spec with a field for each section of the stages' definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import Field, create_model

from wrpo_engine.contract.definition import Section
from wrpo_engine.contract.stages import SECTIONS
from wrpo_operator.api.base import SpecModel

Model = TypeVar("Model", bound=SpecModel)


def per_section(
    annotation: Any, describe: Callable[[Section], str], *, default: Any = None
) -> Callable[[type[Model]], type[Model]]:
    """Return a decorator that adds a field of this type to a model for each section, described by `describe`."""
    fields: dict[str, Any] = {
        section.name: (annotation, Field(default=default, description=describe(section))) for section in SECTIONS
    }

    def add_fields(model: type[Model]) -> type[Model]:
        return create_model(
            model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **fields
        )

    return add_fields
