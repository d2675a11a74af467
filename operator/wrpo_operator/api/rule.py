"""A rule between fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of one model class. `message` names field, rule and remedy; `check` is True when the rule holds."""

    models: tuple[type[BaseModel], ...]
    cel: str
    message: str
    check: Callable[[Any], bool] | None
    """None: a transition rule (it compares with the stored object), which only the API server can check, or one that
    is checked elsewhere with a more detailed message."""
