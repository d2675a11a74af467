"""An API server on a temporary directory for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from devcluster.api_rig import ADMIN, CRDS, WIDGET_CRD, Rig

from wrpo_devcluster.apiserver.server import ApiServer
from wrpo_devcluster.client import NAMESPACES, SERVICE_ACCOUNTS


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Rig], Awaitable[None]]], None]:
    """Run a scenario against a server; called again, the server is a restarted one on the same state."""

    async def play(scenario: Callable[[Rig], Awaitable[None]]) -> None:
        server = ApiServer(tmp_path / "state", admin_token=ADMIN)
        async with TestClient(TestServer(server.app())) as http:
            rig = Rig(server, http)
            if server.store.get("/namespaces", "", "ns") is None:
                await rig.client.create(NAMESPACES, {"metadata": {"name": "ns"}})
                await rig.client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "default"}}, "ns")
                await rig.client.create(CRDS, WIDGET_CRD)
            await scenario(rig)
        await server.close()

    return lambda scenario: asyncio.run(play(scenario))
