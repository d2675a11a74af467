"""Liveness and readiness: a process that no longer watches, reconciles or renews its lease is not alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

Check = Callable[[], str]
"""Returns the problem, or the empty string."""


def heartbeat(what: str, age_s: Callable[[], float], limit_s: float) -> Check:
    """Return a check that fails once `age_s` exceeds `limit_s`."""

    def check() -> str:
        age = age_s()
        return f"{what}: nothing for {age:.0f} s (limit {limit_s:.0f} s)" if age > limit_s else ""

    return check


def contact(what: str, age_s: Callable[[], float], limit_s: float, problem: Callable[[], str]) -> Check:
    """Return a check that fails after `limit_s` without contact, with the cause if it is known."""

    def check() -> str:
        age = age_s()
        return f"{what}: no request has succeeded for {age:.0f} s: {problem()}" if age > limit_s else ""

    return check


def evaluate(checks: Mapping[str, Check]) -> tuple[bool, dict[str, str]]:
    """Run all checks; return whether all passed, and the finding of each (`ok` or the problem)."""
    findings = {name: check() or "ok" for name, check in checks.items()}
    return all(finding == "ok" for finding in findings.values()), findings


def health_app(
    *, live: Mapping[str, Check], ready: Mapping[str, Check], metrics: Callable[[], bytes]
) -> web.Application:
    """Return the app with /healthz, /readyz and /metrics."""

    def probe(checks: Mapping[str, Check]) -> Callable[[web.Request], web.Response]:
        def answer(_request: web.Request) -> web.Response:
            passed, findings = evaluate(checks)
            return web.json_response({"ok": passed, "checks": findings}, status=200 if passed else 503)

        return answer

    async def healthz(request: web.Request) -> web.Response:
        return probe(live)(request)

    async def readyz(request: web.Request) -> web.Response:
        return probe(ready)(request)

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=metrics(), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show_metrics)])
    return app
