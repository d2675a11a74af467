"""Refusals of an API server that has not loaded its roles yet: 403 for all but administrators."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from wrpo_devcluster.clock import Clock

MESSAGE = "forbidden: RBAC: roles and bindings are not loaded yet"
_OPEN = ("/healthz", "/livez", "/readyz", "/version")
"""Paths that every user may get."""


def rbac_delay_middleware(delay_s: float, admin_token: str, clock: Clock) -> Any:
    """Return an aiohttp middleware that refuses requests for `delay_s` seconds from now on."""
    loaded_at = clock.now().timestamp() + delay_s

    @web.middleware
    async def middleware(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        is_admin = hmac.compare_digest(given.encode(), admin_token.encode())
        if is_admin or request.path.startswith(_OPEN) or clock.now().timestamp() >= loaded_at:
            return await handler(request)
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": MESSAGE}
        return web.json_response({**status, "reason": "Forbidden", "code": 403}, status=403)

    return middleware
