"""The operator as its reconcilers see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wrpo_operator.runtime.store import Key


class NotLeadingError(Exception):
    """Another operator leads, so no further writes are allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Permission to write, and functions that a reconciler calls."""

    may_act: Callable[[], bool]
    """Returns whether this operator leads and knows the state of the cluster."""
    forget: Callable[[Key], None] = lambda _key: None
    """Called with each resource that was deleted."""
    wake: Callable[[Key], None] = lambda _key: None
    """Called with each experiment that is to be reconciled: a watch reports no change that the store already has."""

    def check(self) -> None:
        """Raise NotLeadingError unless writes are allowed."""
        if not self.may_act():
            raise NotLeadingError
