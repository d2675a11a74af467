"""The fault injection over HTTP: `POST /devcluster/faults` with the admin's token, a body of JSON, nothing else."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from wrpo_devcluster.client import ApiError, Client
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.faults import Faults, disrupt, lose_node, lose_pod

_PATH = "/devcluster/faults"
_USAGE = (
    'send one of {"pullErrors": {IMAGE_PART: MESSAGE}}, {"schedulingDelaySeconds": N}, '
    '{"disrupt": {"namespace", "pod", "reason"}}, {"losePod": {"namespace", "pod"}}, {"loseNode": NODE}'
)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def faults_middleware(faults: Faults, client: Client, clock: Clock, admin_token: str) -> Any:
    """Return an aiohttp middleware that answers for /devcluster/ and passes everything else on."""

    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if not request.path.startswith("/devcluster/"):
            return await handler(request)
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), admin_token.encode()):
            return web.json_response({"error": "only the cluster's admin may inject faults"}, status=403)
        if request.path != _PATH or request.method not in {"GET", "POST"}:
            return web.json_response({"error": f"unknown path; use GET or POST {_PATH}"}, status=404)
        if request.method == "POST":
            try:
                lost = await _apply(await request.json(), faults, client, clock)
            except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
                return web.json_response({"error": f"{error}; {_USAGE}"}, status=400)
            except ApiError as error:
                return web.json_response(error.status, status=error.code)
            return web.json_response({**_state(faults), **({"lost": lost} if lost else {})})
        return web.json_response(_state(faults))

    return middleware


def _state(faults: Faults) -> dict[str, Any]:
    return {"pullErrors": faults.pull_errors, "schedulingDelaySeconds": faults.scheduling_delay_s}


async def _apply(body: dict[str, Any], faults: Faults, client: Client, clock: Clock) -> list[str]:
    unknown = set(body) - {"pullErrors", "schedulingDelaySeconds", "disrupt", "losePod", "loseNode"}
    if unknown:
        raise ValueError(f"unknown fault {sorted(unknown)}")
    lost: list[str] = []
    if "pullErrors" in body:
        faults.pull_errors = {str(k): str(v) for k, v in body["pullErrors"].items()}
    if "schedulingDelaySeconds" in body:
        faults.scheduling_delay_s = float(body["schedulingDelaySeconds"])
    if "disrupt" in body:
        wanted = body["disrupt"]
        reason = wanted.get("reason", "EvictionByEvictionAPI")
        await disrupt(client, clock, wanted["namespace"], wanted["pod"], reason)
    if "losePod" in body:
        await lose_pod(client, body["losePod"]["namespace"], body["losePod"]["pod"])
    if "loseNode" in body:
        lost = await lose_node(client, clock, body["loseNode"])
    return lost
