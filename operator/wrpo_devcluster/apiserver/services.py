"""Parts of the API server that its endpoints use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import User
from wrpo_devcluster.apiserver.auth.rbac import Attributes, Authorizer
from wrpo_devcluster.apiserver.auth.tokens import Tokens
from wrpo_devcluster.apiserver.registry.deletion import Deleter
from wrpo_devcluster.apiserver.registry.pipeline import RequestPipeline
from wrpo_devcluster.apiserver.schema.kinds import Registry
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.client import LogOptions
from wrpo_devcluster.faults import Faults, RequestTarget

RequestLog = Callable[[str, Attributes, int], None]
"""Receives the user's name, the target, and the HTTP status of each resource request."""


class LogReader(Protocol):
    """Reader of container logs, which the kubelet provides."""

    def read(self, namespace: str, pod: str, container: str, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield the bytes of a container's log; raise ApiError if there is none."""
        ...


@dataclass(slots=True)
class Attachments:
    """Parts that other components attach to an existing server."""

    log_reader: LogReader | None = None
    request_log: RequestLog | None = None


@dataclass(frozen=True, slots=True)
class Services:
    """Parts of one server."""

    store: Store
    registry: Registry
    pipeline: RequestPipeline
    deleter: Deleter
    authorizer: Authorizer
    tokens: Tokens
    faults: Faults
    clock: Callable[[], datetime]
    admin_token: str
    attached: Attachments

    def authorize(self, user: User, asked: Attributes) -> None:
        """Raise 403 unless the user has the right."""
        if not user.privileged:
            self.authorizer.check(user, asked)

    async def apply_faults(self, user: User, asked: Attributes) -> None:
        """Delay or refuse a request for which a fault was injected."""
        target = RequestTarget(user.name, asked.verb, asked.group, asked.resource, asked.namespace, asked.name)
        refusal = self.faults.take_refusal(target)
        if refusal is None:
            return
        if refusal.delay_s:
            await asyncio.sleep(refusal.delay_s)
        if refusal.code:
            raise errors.refused(refusal.code, refusal.message, retry_after_s=refusal.retry_after_s)

    def log(self, user: User, asked: Attributes, code: int) -> None:
        """Report a request that has ended to the attached log."""
        if self.attached.request_log is not None:
            self.attached.request_log(user.name, asked, code)
