"""HTTP application: paths to requests, content negotiation, errors to Status objects."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import yaml
from aiohttp import web
from multidict import CIMultiDict

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import User
from wrpo_devcluster.apiserver.auth.rbac import Attributes
from wrpo_devcluster.apiserver.endpoints import discovery, openapi, protobuf
from wrpo_devcluster.apiserver.endpoints.authenticate import authenticate
from wrpo_devcluster.apiserver.endpoints.handlers import handle
from wrpo_devcluster.apiserver.endpoints.negotiate import JSON, serialization_of
from wrpo_devcluster.apiserver.endpoints.request import Answer, ResourcePath, ResourceRequest
from wrpo_devcluster.apiserver.schema.kinds import Kind, definition_of
from wrpo_devcluster.apiserver.schema.schema import META
from wrpo_devcluster.apiserver.schema.serializer import as_yaml, parse_json, parse_yaml
from wrpo_devcluster.apiserver.services import Services
from wrpo_devcluster.apiserver.storage.store import encode
from wrpo_devcluster.client import ApiError, JsonObject

log = logging.getLogger(__name__)

SERVICES: web.AppKey[Services] = web.AppKey("services")
_MAX_BODY = 3 * 1024 * 1024
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_HEALTH = {"/healthz", "/readyz", "/livez"}
_AGGREGATED = "apidiscovery.k8s.io"
_TOO_DEEP = "the object nests too deep for this server: exceeded max depth"


def make_app(services: Services) -> web.Application:
    """Return the web application that serves every path of the API."""
    app = web.Application(client_max_size=_MAX_BODY)
    app[SERVICES] = services
    app.router.add_route("*", "/{path:.*}", _entry)
    return app


async def _entry(request: web.Request) -> web.StreamResponse:
    try:
        return await _dispatch(request.app[SERVICES], request)
    except ApiError as problem:
        return _refusal(request, problem)
    except web.HTTPRequestEntityTooLarge:
        why = f"Request entity too large: limit is {_MAX_BODY}"
        return _refusal(request, errors.error(413, "RequestEntityTooLarge", why))
    except RecursionError:
        return _refusal(request, errors.bad_request(_TOO_DEEP))
    except Exception as problem:
        if isinstance(problem, web.HTTPException | ConnectionResetError):
            raise
        log.exception("%s %s failed", request.method, request.path)
        return _refusal(request, errors.error(500, "InternalError", f"Internal error occurred: {problem!r}"))


def _refusal(request: web.Request, problem: ApiError) -> web.Response:
    headers = [("Warning", _warning(text)) for text in problem.warnings]
    seconds = (problem.status.get("details") or {}).get("retryAfterSeconds")
    if seconds is not None:
        headers.append(("Retry-After", str(seconds)))
    try:
        media = serialization_of(request.headers.get("Accept", ""))
    except ApiError:
        media = JSON
    body = encode(problem.status) if media == JSON else as_yaml(problem.status)
    headers.append(("Content-Type", media))
    return web.Response(body=body, status=problem.code, headers=CIMultiDict(headers))


def _json(body: Any, status: int = 200, content_type: str = "application/json") -> web.Response:
    return web.Response(body=encode(body), status=status, headers={"Content-Type": content_type})


def _not_found() -> web.Response:
    return web.Response(text="404 page not found\n", status=404)


async def _dispatch(services: Services, request: web.Request) -> web.StreamResponse:
    user = authenticate(services, request)
    path = request.path
    parts = [part for part in path.split("/") if part]
    if (wanted := ResourcePath.parse(parts)) is not None:
        return await _resource(services, request, user, wanted)
    if not user.privileged:
        services.authorizer.check(user, Attributes(request.method.lower(), path=path))
    return _document(services, request, path, parts)


def _document(services: Services, request: web.Request, path: str, parts: list[str]) -> web.Response:
    """Return the document of a path that is no resource: health, version, discovery, OpenAPI."""
    if path.rstrip("/") in _HEALTH or (parts and f"/{parts[0]}" in _HEALTH):
        return web.Response(text="ok")
    if path.rstrip("/") == "/version":
        return _json(discovery.VERSION)
    if parts[:2] == ["openapi", "v3"]:
        return _openapi(services, parts[2:])
    if parts[:1] in (["api"], ["apis"]):
        return _discovery(services, request, parts)
    if not parts:
        return _json(
            {"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}
        )
    return _not_found()


def _discovery(services: Services, request: web.Request, parts: list[str]) -> web.Response:
    registry = services.registry
    accept = request.headers.get("Accept", "")
    if len(parts) == 1 and _AGGREGATED in accept and "v=v2" in accept:
        groups = {"": ["v1"]} if parts[0] == "api" else registry.groups()
        content_type = f"application/json;g={_AGGREGATED};v=v2;as=APIGroupDiscoveryList"
        return _json(discovery.aggregated(registry, groups), content_type=content_type)
    found: JsonObject | None
    if parts == ["api"]:
        found = discovery.api_versions()
    elif parts == ["apis"]:
        found = discovery.group_list(registry)
    elif parts[0] == "api":
        found = discovery.resource_list(registry, "", parts[1])
    elif len(parts) == 2:
        found = discovery.group_document(registry, parts[1])
    else:
        found = discovery.resource_list(registry, parts[1], parts[2])
    return _json(found) if found is not None else _not_found()


def _openapi(services: Services, parts: list[str]) -> web.Response:
    if not parts:
        return _json(openapi.index(services.registry))
    if parts[0] == "api" and len(parts) == 2:
        found = openapi.document(services.registry, "", parts[1])
    elif parts[0] == "apis" and len(parts) == 3:
        found = openapi.document(services.registry, parts[1], parts[2])
    else:
        found = None
    return _json(found) if found is not None else _not_found()


async def _resource(services: Services, request: web.Request, user: User, path: ResourcePath) -> web.StreamResponse:
    kind = services.registry.find(path.group, path.version, path.plural)
    if kind is None or not path.fits(kind):
        return _unknown(services, request, user, path, kind)
    wanted = ResourceRequest(
        services=services,
        user=user,
        method=request.method,
        kind=kind,
        namespace=path.namespace,
        name=path.name,
        subresource=path.subresource,
        query=request.query,
        accept=request.headers.get("Accept", "application/json"),
        user_agent=request.headers.get("User-Agent", ""),
    )
    return _not_found() if wanted.is_misplaced else await _serve(request, wanted)


def _unknown(
    services: Services, request: web.Request, user: User, path: ResourcePath, kind: Kind | None
) -> web.Response:
    """Refuse a path that does not exist, without revealing it to users who may not see the path."""
    services.authorize(user, path.asked(_VERBS.get(request.method, "get")))
    if kind is not None and kind.custom is not None and path.name and kind.namespaced == (path.namespace is not None):
        raise errors.not_found(kind.plural, kind.group, path.name)
    return _not_found()


async def _serve(request: web.Request, wanted: ResourceRequest) -> web.StreamResponse:
    """Carry out a request for a resource, with its authorization, faults and log."""
    services, user, asked = wanted.services, wanted.user, wanted.asked
    code = 500
    try:
        await services.apply_faults(user, asked)
        services.authorize(user, replace(asked, name=wanted.authorized_name))
        content_type = request.content_type if request.body_exists or "Content-Type" in request.headers else ""
        body = await request.read()
        answer = await handle(wanted, content_type, body, lambda media, text: _parse(media, text, wanted.kind))
        code = answer.status
        return await _respond(request, answer)
    except ApiError as problem:
        code = problem.code
        raise
    finally:
        services.log(user, asked, code)


def _parse(media: str, text: bytes, kind: Kind | None) -> Any:
    """Parse the body as JSON data."""
    shown = kind.kind if kind is not None else "object"
    unrecognized = f"the object provided is unrecognized (must be of type {shown}): couldn't get version/kind"
    if not text:
        raise errors.bad_request(f"{unrecognized}; json parse error: unexpected end of JSON input (<empty>)")
    try:
        if media == "application/vnd.kubernetes.protobuf":
            return _parse_protobuf(text)
        if media in {"application/yaml", "application/apply-patch+yaml"}:
            return parse_yaml(text)
        return parse_json(text)
    except protobuf.ProtobufError as problem:
        raise errors.bad_request(f"{unrecognized}; protobuf: {problem}") from problem
    except RecursionError as problem:
        raise errors.bad_request(f"{unrecognized}; json parse error: exceeded max depth") from problem
    except (ValueError, KeyError, yaml.YAMLError) as problem:
        excerpt = text[:60].decode(errors="replace")
        raise errors.bad_request(f"{unrecognized}; json parse error: {problem} ({excerpt})") from problem


_PROTOBUF_GROUPS = {"DeleteOptions": f"{META}.DeleteOptions"}


def _parse_protobuf(text: bytes) -> JsonObject:
    version, name, raw = protobuf.decode_envelope(text)
    group = version.rpartition("/")[0]
    definition = _PROTOBUF_GROUPS.get(name) or definition_of(group, name)
    body = protobuf.decode(definition, raw)
    return {**body, "apiVersion": version, "kind": name}


async def _respond(request: web.Request, answer: Answer) -> web.StreamResponse:
    media, body = answer.content_type, answer.body
    if media == JSON and answer.stream is None:
        media = serialization_of(request.headers.get("Accept", ""))
        if media != JSON:
            body = as_yaml(json.loads(body))
    headers = [("Content-Type", media)]
    headers += [("Warning", _warning(text)) for text in answer.warnings]
    if answer.stream is None:
        return web.Response(body=body, status=answer.status, headers=CIMultiDict(headers))
    return await _stream(request, answer, answer.stream, headers)


def _warning(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'299 - "{escaped}"'


async def _stream(
    request: web.Request, answer: Answer, chunks: AsyncIterator[bytes], headers: list[tuple[str, str]]
) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status)
    for name, value in headers:
        response.headers.add(name, value)
    response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        async for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()
    except (ConnectionResetError, asyncio.CancelledError):
        # The client disconnected or the server stops: both end a stream normally.
        if isinstance(task := asyncio.current_task(), asyncio.Task) and task.cancelling():
            raise
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
    return response
