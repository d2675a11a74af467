"""Startup, readiness and liveness probes: a single attempt of each kind, and the thresholds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from wrpo_devcluster.client import JsonObject


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """Target of a container's probes: the pod's address, its named ports, and the launcher of its commands."""

    address: str
    ports: Mapping[str, int]
    env: Mapping[str, str]
    cwd: str


@dataclass(slots=True)
class Tally:
    """Count of equal results in a row against a probe's thresholds."""

    success_threshold: int
    failure_threshold: int
    _successes: int = 0
    _failures: int = 0

    def add(self, succeeded: bool) -> bool | None:
        """Count a result. Return True or False when a threshold is reached, None before."""
        if succeeded:
            self._successes, self._failures = self._successes + 1, 0
            return True if self._successes >= self.success_threshold else None
        self._successes, self._failures = 0, self._failures + 1
        return False if self._failures >= self.failure_threshold else None


def tally_of(probe: JsonObject) -> Tally:
    """Return an empty count with the thresholds of a probe."""
    return Tally(int(probe.get("successThreshold") or 1), int(probe.get("failureThreshold") or 3))


async def try_once(probe: JsonObject, target: ProbeTarget) -> str | None:
    """Return None if the probe succeeds, else why not."""
    timeout_s = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(timeout_s):
            if "httpGet" in probe:
                return await _http_get(probe["httpGet"], target)
            if "tcpSocket" in probe:
                return await _tcp(probe["tcpSocket"], target)
            if "exec" in probe:
                return await _exec(probe["exec"]["command"], target)
    except TimeoutError:
        return f"command timed out after {timeout_s:g}s" if "exec" in probe else "context deadline exceeded"
    return f"unsupported probe: {sorted(probe)}"


async def _http_get(action: JsonObject, target: ProbeTarget) -> str | None:
    scheme = str(action.get("scheme") or "HTTP").lower()
    host = action.get("host") or target.address
    path = str(action.get("path") or "/").lstrip("/")
    url = f"{scheme}://{host}:{_port(action['port'], target)}/{path}"
    headers = {entry["name"]: entry["value"] for entry in action.get("httpHeaders") or []}
    connector = aiohttp.TCPConnector(ssl=False, force_close=True)
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(url, headers=headers, allow_redirects=False) as response,
        ):
            if 200 <= response.status < 400:
                return None
            return f"HTTP probe failed with statuscode: {response.status}"
    except (aiohttp.ClientError, OSError) as error:
        return f'Get "{url}": {error}'


async def _tcp(action: JsonObject, target: ProbeTarget) -> str | None:
    host, port = action.get("host") or target.address, _port(action["port"], target)
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return f"dial tcp {host}:{port}: {error}"
    writer.close()
    return None


async def _exec(command: list[str], target: ProbeTarget) -> str | None:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(target.env),
            cwd=target.cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        return f"{command[0]}: {error}"
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode == 0:
        return None
    return output.decode(errors="replace").strip() or f"exit code {process.returncode}"


def _port(port: int | str, target: ProbeTarget) -> int:
    return target.ports.get(port, 0) if isinstance(port, str) and not port.isdigit() else int(port)
