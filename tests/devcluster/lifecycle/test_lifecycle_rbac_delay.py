"""A server that has not loaded its roles yet refuses all but its administrators."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from wrpo_devcluster.rbac_delay import MESSAGE, rbac_delay_middleware


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


def test_only_administrators_and_probes_are_answered_before_the_roles_are_loaded() -> None:
    async def main() -> None:
        clock = Clock()
        app = web.Application(middlewares=[rbac_delay_middleware(2.0, "root", clock)])  # type: ignore[arg-type]

        async def answer(_request: web.Request) -> web.Response:
            return web.json_response({"code": 200})

        app.router.add_get("/{tail:.*}", answer)
        async with TestServer(app) as server, ClientSession() as session:

            async def code(path: str, token: str = "") -> int:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                async with session.get(server.make_url(path), headers=headers) as response:
                    body = await response.json()
                    assert (response.status, body.get("message")) == (body["code"], {403: MESSAGE}.get(response.status))
                    return response.status

            assert await code("/api/v1/pods", "operator") == 403
            assert await code("/apis") == 403
            assert await code("/api/v1/pods", "root") == 200
            assert await code("/readyz") == 200
            clock.time += timedelta(seconds=2)
            assert await code("/api/v1/pods", "operator") == 200

    asyncio.run(main())
