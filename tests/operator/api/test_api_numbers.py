"""Numbers as a real API server decides on them: an integer is compared with the integer part of a bound."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from wrpo_devcluster.apiserver.validation.crd_schema import default_faults
from wrpo_devcluster.apiserver.validation.custom import check_number
from wrpo_operator.api.crd import schema
from wrpo_operator.api.schema import structural
from wrpo_operator.api.spec import ExperimentSpec
from wrpo_operator.api.status import ExperimentStatus

Place = tuple[str, Any, dict[str, Any]]
"""Path, the type in the Python model, the schema in the CRD."""


def numbers(path: str, annotation: Any, node: dict[str, Any]) -> Iterator[Place]:
    """Every number at or below a type, with the schema that was generated from it."""
    plain = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        for name, info in plain.model_fields.items():
            held = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
            alias = info.alias or name
            yield from numbers(f"{path}.{alias}", held, node["properties"][alias])
    elif node.get("type") in {"integer", "number"}:
        yield path, annotation, node
    elif get_origin(plain) in {Union, types.UnionType}:
        for part in get_args(plain):
            if part is not type(None) and "x-kubernetes-int-or-string" not in node:
                yield from numbers(path, part, node)
    elif get_origin(plain) is tuple:
        yield from numbers(f"{path}[]", get_args(plain)[0], node["items"])


PLACES = [
    *numbers("spec", ExperimentSpec, schema()["properties"]["spec"]),
    *numbers("status", ExperimentStatus, schema()["properties"]["status"]),
]


def around(node: dict[str, Any]) -> set[int]:
    """Integers at and next to the bounds, and small ones."""
    bounds = [int(node[bound]) for bound in ("minimum", "maximum") if bound in node]
    return {-1, 0, 1, *(bound + step for bound in bounds for step in (-1, 0, 1))}


def allows(annotation: Any, value: float) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def test_the_walk_finds_the_numbers() -> None:
    assert len(PLACES) > 80
    assert {"spec.training.labelSmoothing", "spec.sources[].sampling.topP"} <= {path for path, _, _ in PLACES}


@pytest.mark.parametrize("place", PLACES, ids=[path for path, _, _ in PLACES])
def test_an_integer_that_the_model_allows_passes_as_a_real_server_decides(place: Place) -> None:
    path, annotation, node = place
    refused = {
        value: causes
        for value in around(node)
        if allows(annotation, value) and (causes := check_number(node, value, path))
    }
    assert refused == {}


def test_every_default_passes_as_a_real_server_decides() -> None:
    def walk(path: str, node: dict[str, Any]) -> Iterator[Any]:
        if "default" in node:
            yield from default_faults(node, node["default"], path)
        for name, child in node.get("properties", {}).items():
            yield from walk(f"{path}.{name}", child)
        if "items" in node:
            yield from walk(f"{path}[]", node["items"])

    assert list(walk("spec", schema()["properties"]["spec"])) == []


class Bounds(BaseModel):
    """Fractional exclusive bounds of each sign."""

    below: float = Field(default=0, lt=0.5, ge=0)
    """Below a half."""
    above: float = Field(default=0, gt=-0.5)
    """Above minus a half."""
    wide: float = Field(default=0, lt=2.5, gt=-2.5)
    """Between."""
    whole: float = Field(default=1, gt=0, lt=5)
    """Whole bounds."""


@pytest.mark.parametrize("value", [-3, -2, -1, 0, 1, 2, 3, 4, 5, -2.5, -0.5, 0.5, 2.5, 0.49, -0.49, 2.4999, 0.0, 4.9])
def test_exclusive_bounds_mean_in_the_schema_what_they_mean_in_the_model(value: float) -> None:
    properties = structural(Bounds)["properties"]
    for name, info in Bounds.model_fields.items():
        is_allowed = allows(Annotated[(info.annotation, *info.metadata)], value)
        assert (check_number(properties[name], value, name) == []) is is_allowed, (name, value)
