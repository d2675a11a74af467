"""Bounded types shared by declarations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints, WithJsonSchema

MODEL_PATTERN = (
    r"^([A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?"
    r"|(storage:/)?(/\.?[A-Za-z0-9_+@=-][A-Za-z0-9._+@=-]*)+/?)$"
)
"""A hub id, an absolute path, or storage://PATH. No spaces, no quotes, no `..`, nothing a shell would act on."""
REVISION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
MAX_SEED = 2**31 - 1

ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
"""Schema extension of a list that is replaced as a whole."""

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=MODEL_PATTERN)]
Revision = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=REVISION_PATTERN)]
Backend = Literal["vLLM", "Transformers"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Text = Annotated[str, Field(min_length=1, max_length=65536)]
Name = Annotated[str, Field(min_length=1, max_length=128)]
Tokens = Annotated[int, Field(ge=1, le=1048576)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=1000000)]
Seconds = Annotated[int, Field(ge=1, le=86400)]
BatchTokens = Annotated[int, Field(ge=1, le=16777216)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
JsonFields = Annotated[
    dict[str, JsonValue], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
"""Fields of any names, which another program reads."""
EngineArgs = JsonFields


def is_hub_id(name: str) -> bool:
    """Return whether a model's or data set's name is a hub id, and neither a path nor an address such as storage://."""
    return "://" not in name and not name.startswith("/")
