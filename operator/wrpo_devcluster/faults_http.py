"""Fault injection over HTTP: `GET` and `POST /devcluster/faults` with the admin's token."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.client import ApiError, Client, JsonObject
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.faults import Disruption, Faults, Refusal, disrupt, lose_node, lose_pod

PATH = "/devcluster/faults"
_PREFIX = "/devcluster/"

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Form(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class _Pod(_Form):
    namespace: str
    pod: str


class _Disruption(_Pod):
    reason: Disruption = "EvictionByEvictionAPI"


class _Watches(_Form):
    resource: str = ""
    gone: bool = False


class Command(_Form):
    """Body of a POST. Each field that is set is one fault."""

    clear: bool = False
    pull_errors: dict[str, str] | None = None
    scheduling_delay_seconds: float | None = Field(None, ge=0, strict=False)
    refuse: Refusal | None = None
    close_watches: _Watches | None = None
    disrupt: _Disruption | None = None
    lose_pod: _Pod | None = None
    lose_node: str | None = None


_USAGE = f"send an object with some of {', '.join(to_camel(name) for name in Command.model_fields)}"


@dataclass(frozen=True, slots=True)
class FaultInjection:
    """Carries out commands."""

    faults: Faults
    client: Client
    clock: Clock
    close_watches: Callable[[str, bool], int]
    """Ends the watches on a resource (empty: all) and returns how many. With True it also forgets the history."""

    def state(self) -> JsonObject:
        """Return the faults in force."""
        return {
            "pullErrors": self.faults.pull_errors,
            "schedulingDelaySeconds": self.faults.scheduling_delay_s,
            "refusals": [refusal.model_dump(by_alias=True) for refusal in self.faults.refusals],
        }

    async def apply(self, command: Command) -> JsonObject:
        """Carry out a command; return what it did at once, and the faults in force afterwards."""
        done: JsonObject = {}
        if command.clear:
            self.faults.clear()
        if command.pull_errors is not None:
            self.faults.pull_errors = command.pull_errors
        if command.scheduling_delay_seconds is not None:
            self.faults.scheduling_delay_s = command.scheduling_delay_seconds
        if command.refuse is not None:
            self.faults.refuse(command.refuse)
        if command.close_watches is not None:
            done["closed"] = self.close_watches(command.close_watches.resource, command.close_watches.gone)
        if (wanted := command.disrupt) is not None:
            await disrupt(self.client, self.clock, wanted.namespace, wanted.pod, wanted.reason)
        if command.lose_pod is not None:
            await lose_pod(self.client, command.lose_pod.namespace, command.lose_pod.pod)
        if command.lose_node is not None:
            done["lost"] = await lose_node(self.client, self.clock, command.lose_node)
        return {**self.state(), **done}


def parse_command(body: bytes) -> Command:
    """Read the body of a POST; ApiError 400 names the field that is wrong."""
    try:
        command = Command.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise errors.bad_request(f"{f'{field}: ' if field else ''}{first['msg']}; {_USAGE}") from problem
    if not command.model_fields_set:
        raise errors.bad_request(f"the body names no fault; {_USAGE}")
    return command


def faults_middleware(injection: FaultInjection, admin_token: str) -> Any:
    """Return an aiohttp middleware that serves /devcluster/ and passes everything else on."""

    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if not request.path.startswith(_PREFIX):
            return await handler(request)
        try:
            return web.json_response(await _answer(injection, request, admin_token))
        except ApiError as error:
            return web.json_response(error.status, status=error.code)

    return middleware


async def _answer(injection: FaultInjection, request: web.Request, admin_token: str) -> JsonObject:
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), admin_token.encode()):
        raise errors.error(403, "Forbidden", "forbidden: only the cluster's admin may inject faults", {})
    if request.path != PATH or request.method not in {"GET", "POST"}:
        raise errors.error(404, "NotFound", f"unknown path; use GET or POST {PATH}", {})
    if request.method == "GET":
        return injection.state()
    return await injection.apply(parse_command(await request.read()))
