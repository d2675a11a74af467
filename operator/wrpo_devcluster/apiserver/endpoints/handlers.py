"""Handlers of resource requests: verbs, query options, request bodies, negotiated replies."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from wrpo_devcluster.apiserver.apis import errors, options
from wrpo_devcluster.apiserver.apis.request import Context
from wrpo_devcluster.apiserver.endpoints import discovery, event_forms, event_requests, reviews, subresources
from wrpo_devcluster.apiserver.endpoints.listing import list_body, without_type
from wrpo_devcluster.apiserver.endpoints.logs import stream_logs
from wrpo_devcluster.apiserver.endpoints.negotiate import View, view_of
from wrpo_devcluster.apiserver.endpoints.request import PATCH_TYPES, Answer, ResourceRequest
from wrpo_devcluster.apiserver.endpoints.watch import Watch, WatchRequest, parse_past_version
from wrpo_devcluster.apiserver.fieldmanager import patch
from wrpo_devcluster.apiserver.registry import eviction
from wrpo_devcluster.apiserver.registry.deletion import DeleteOptions, success
from wrpo_devcluster.apiserver.schema import schema
from wrpo_devcluster.apiserver.schema.kinds import Kind, definition_of
from wrpo_devcluster.apiserver.storage.store import encode
from wrpo_devcluster.client import ApiError, JsonObject

Parser = Callable[[str, bytes], Any]
BODY_TYPES = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
_DELETE_OPTIONS = ("propagationPolicy", "gracePeriodSeconds", "orphanDependents", "dryRun")


async def handle(request: ResourceRequest, media: str, body: bytes, parse: Parser) -> Answer:
    """Carry out an authorized request."""
    if request.subresource and not discovery.allows(request.subresource, request.verb):
        raise errors.method_not_allowed()
    if request.method in {"GET", "HEAD"}:
        return await _read(request)
    if request.kind.verbs == ("create",) and request.method != "POST":
        raise errors.method_not_allowed()
    if request.method == "PATCH":
        _check_patch(request, media)
    context = request.context(media)
    try:
        answer = _write(request, context, media, body, parse)
    except ApiError as problem:
        problem.warnings = context.warnings
        raise
    answer.warnings = context.warnings
    return answer


def _write(request: ResourceRequest, context: Context, media: str, body: bytes, parse: Parser) -> Answer:
    if request.method == "PATCH":
        return _patch(request, context, media, body, parse)
    if request.method == "DELETE":
        given = parse(media or "application/json", body) if body else {}
        return _delete(request, context, given)
    if request.method in {"POST", "PUT"}:
        media = media or "application/json"
        if media not in BODY_TYPES and media != "application/octet-stream":
            raise errors.unsupported_media_type(BODY_TYPES)
        content = parse("application/json" if media == "application/octet-stream" else media, body)
        return _post(request, context, content) if request.method == "POST" else _put(request, context, content)
    raise errors.method_not_allowed()


async def _read(request: ResourceRequest) -> Answer:
    services, kind = request.services, request.kind
    if kind.verbs == ("create",):
        raise errors.method_not_allowed()
    if request.subresource == "log":
        return Answer(content_type="text/plain", stream=await stream_logs(request))
    view = view_of(request.accept, kind, request.query.get("includeObject", "Metadata"), services.clock)
    if not request.name:
        return _watch(request, view) if request.is_watch else list_body(request, view)
    parse_past_version(request.query.get("resourceVersion", ""), services.store.rv)
    record = services.store.get(kind.storage_key, request.namespace or "", request.name)
    if record is None:
        raise errors.not_found(kind.plural, kind.group, request.name)
    if request.subresource == "scale":
        return Answer(body=encode(subresources.scale_of(kind, record.obj)))
    if view.transform is not None:
        return Answer(body=encode(view.transform(record.obj)))
    return Answer(body=record.text)


def _watch(request: ResourceRequest, view: View) -> Answer:
    query = request.query
    options.check_watch(query)
    initial = query.get("sendInitialEvents", "") in options.TRUE
    seconds = options.integer(query, "timeoutSeconds")
    timeout = float(seconds) if seconds > 0 else random.uniform(1800, 3600)  # noqa: S311
    watch = Watch(
        request.services.store,
        request.kind,
        WatchRequest(
            namespace=request.namespace,
            resource_version=query.get("resourceVersion", ""),
            matches=request.matches(),
            transform=view.for_watch(),
            timeout_s=timeout,
            bookmarks=query.get("allowWatchBookmarks", "") in options.TRUE,
            initial_events=initial,
        ),
    )
    return Answer(stream=watch.lines())


def _shown(request: ResourceRequest, obj: JsonObject, status: int) -> Answer:
    view = view_of(request.accept, request.kind, request.query.get("includeObject", "Metadata"), request.services.clock)
    if view.transform is not None:
        return Answer(status, encode(view.transform(obj)))
    meta = obj["metadata"]
    record = request.services.store.get(request.kind.storage_key, meta.get("namespace", ""), meta.get("name", ""))
    # A stored object has its text. A dry run or the end of the object stored nothing.
    return Answer(status, record.text if record is not None and record.obj is obj else encode(obj))


def _post(request: ResourceRequest, context: Context, body: Any) -> Answer:
    services, kind = request.services, request.kind
    if kind.verbs == ("create",):
        return Answer(201, encode(reviews.review(services, kind, request.namespace, body, context)))
    if request.subresource == "token":
        served = Kind(
            "authentication.k8s.io", "v1", "TokenRequest", "serviceaccounts", True,
            schema.builtin(definition_of("authentication.k8s.io", "TokenRequest")),
        )  # fmt: skip
        found = reviews.token_request(services, served, request.target, body, context)
        return Answer(201, encode(found))
    if request.subresource == "binding":
        return Answer(201, encode(subresources.bind(services, request.target, body, context)))
    if request.subresource == "eviction":
        return Answer(201, encode(eviction.evict(services.deleter, request.target, body, context)))
    if request.subresource:
        raise errors.method_not_allowed()
    if (kind.namespaced and request.namespace is None) or (request.name and kind.custom is None):
        raise errors.method_not_allowed()
    if kind.group == event_forms.GROUP:
        created = event_requests.create(services, kind, request.namespace, body, context)
    else:
        created = services.pipeline.create(request.target, body, context)
    return _shown(request, created, 201)


def _put(request: ResourceRequest, context: Context, body: Any) -> Answer:
    services = request.services
    if not request.name:
        raise errors.method_not_allowed()
    if request.subresource == "scale":
        return Answer(200, encode(subresources.put_scale(services, request.target, body, context)))
    if request.kind.group == event_forms.GROUP:
        return _shown(request, event_requests.update(services, request.target, body, context), 200)
    obj, created = services.pipeline.update(request.target, body, context)
    return _shown(request, obj, 201 if created else 200)


def _check_patch(request: ResourceRequest, media: str) -> None:
    if not request.name:
        raise errors.method_not_allowed()
    accepted = [name for name in PATCH_TYPES if request.kind.custom is None or "strategic" not in name]
    if media not in accepted:
        raise errors.unsupported_media_type(accepted)


def _patch(request: ResourceRequest, context: Context, media: str, body: bytes, parse: Parser) -> Answer:
    services, target = request.services, request.target
    style = PATCH_TYPES[media]
    content = parse(media, body)
    patch.check_form(content, style)
    if request.subresource == "scale":
        found = subresources.patch_scale(services, target, content, style, context)
        return Answer(200, encode(found))
    if target.kind.group == event_forms.GROUP:
        found = event_requests.patch_event(services, target, content, style, context)
        return _shown(request, found, 200)
    obj, created = services.pipeline.patch(target, content, context, style=style)
    return _shown(request, obj, 201 if created else 200)


def _delete(request: ResourceRequest, context: Context, body: Any) -> Answer:
    services, kind = request.services, request.kind
    if request.subresource:
        raise errors.method_not_allowed()
    given: JsonObject = {name: value for name in _DELETE_OPTIONS if (value := request.query.get(name)) is not None}
    if "dryRun" in given:
        given["dryRun"] = [given["dryRun"]]
    if "orphanDependents" in given:
        given["orphanDependents"] = given["orphanDependents"] in options.TRUE
    if isinstance(body, dict) and body:
        given = body
    options.check_delete(given)
    context.dry_run = bool(given.get("dryRun"))
    wanted = DeleteOptions.parse(given)
    if request.name:
        obj, gone = services.deleter.delete(kind, request.namespace, request.name, wanted, context)
        return Answer(200, encode(success(kind, obj) if gone else obj))
    return _delete_collection(request, context, wanted)


def _delete_collection(request: ResourceRequest, context: Context, wanted: DeleteOptions) -> Answer:
    services, kind = request.services, request.kind
    if kind.namespaced and request.namespace is None:
        raise errors.method_not_allowed()
    matches = request.matches()
    deleted = []
    for record in list(services.store.list(kind.storage_key, request.namespace)):
        if matches is None or matches(record.obj):
            deleted.append(record)
            services.deleter.delete(kind, request.namespace, record.obj["metadata"]["name"], wanted, context)
    meta: JsonObject = {"resourceVersion": str(services.store.rv)}
    if kind.custom is not None:
        meta["continue"] = ""
    items = [record.obj if kind.custom is not None else without_type(record.obj) for record in deleted]
    return Answer(
        200, encode({"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": meta, "items": items})
    )
