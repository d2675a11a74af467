"""The cluster as the parts of the operator work with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from wrpo_operator.runtime.kube import KubeClient
from wrpo_operator.runtime.store import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Access to the API server, the objects that are watched there, and the clocks."""

    client: KubeClient
    store: ObjectStore
    now: Callable[[], datetime]
    """Returns the time of day in UTC."""
    monotonic: Callable[[], float]
    """Returns seconds since an arbitrary moment, which never decrease."""
