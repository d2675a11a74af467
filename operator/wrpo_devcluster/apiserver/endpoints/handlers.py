"""Resource requests: verbs, query options, bodies in, negotiated bodies out."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wrpo_devcluster.apiserver.apis import errors, options
from wrpo_devcluster.apiserver.apis.request import Context, User
from wrpo_devcluster.apiserver.endpoints import discovery, event_forms, event_requests, reviews, subresources
from wrpo_devcluster.apiserver.endpoints.listing import list_body, without_type
from wrpo_devcluster.apiserver.endpoints.negotiate import View, view_of
from wrpo_devcluster.apiserver.endpoints.watch import Matches, Watch, WatchRequest, parse_past_version
from wrpo_devcluster.apiserver.fieldmanager import patch
from wrpo_devcluster.apiserver.registry import eviction
from wrpo_devcluster.apiserver.registry.deletion import DeleteOptions, success
from wrpo_devcluster.apiserver.schema import schema
from wrpo_devcluster.apiserver.schema.kinds import Kind, definition_of
from wrpo_devcluster.apiserver.storage.indexes import Equals, indexed_condition
from wrpo_devcluster.apiserver.storage.selectors import SelectorError, matcher, parse_fields
from wrpo_devcluster.apiserver.storage.store import encode
from wrpo_devcluster.client import ApiError, JsonObject, Patch

if TYPE_CHECKING:
    from wrpo_devcluster.apiserver.server import ApiServer

Parser = Callable[[str, bytes], Any]
BODY_TYPES = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
PATCH_TYPES: dict[str, Patch] = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}
_DELETE_OPTIONS = ("propagationPolicy", "gracePeriodSeconds", "orphanDependents", "dryRun")


@dataclass(slots=True)
class Answer:
    """What goes back: a body or a stream."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    warnings: list[str] = field(default_factory=list)
    stream: AsyncIterator[bytes] | None = None


@dataclass(slots=True)
class ResourceRequest:
    """One request for a resource, as its path and headers tell."""

    server: ApiServer
    user: User
    method: str
    kind: Kind
    namespace: str | None
    name: str
    subresource: str
    query: Mapping[str, str]
    accept: str
    user_agent: str

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch", "") in options.TRUE

    @property
    def is_misplaced(self) -> bool:
        """Custom resources of all namespaces together can only be listed and watched; other paths do not exist."""
        is_partial = self.kind.namespaced and self.namespace is None
        return self.kind.custom is not None and is_partial and self.verb not in {"list", "watch"}

    @property
    def verb(self) -> str:
        """The verb RBAC knows."""
        if self.method in {"GET", "HEAD"}:
            if self.name:
                return "get"
            return "watch" if self.is_watch else "list"
        if self.method == "DELETE":
            return "delete" if self.name else "deletecollection"
        return {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(self.method, self.method.lower())

    @property
    def authorized_name(self) -> str:
        """The object's name, also where a field selector asks for just one."""
        if self.name or not self.query.get("fieldSelector"):
            return self.name
        try:
            wanted = parse_fields(self.query["fieldSelector"], self.kind.fields)
        except SelectorError:
            return ""
        return next((value for path, value, equal in wanted if equal and path == "metadata.name"), "")

    def context(self, media: str = "") -> Context:
        """Write options from the query."""
        if self.method != "DELETE":
            options.check_write(self.method, self.query, is_apply=PATCH_TYPES.get(media) == "apply")
        manager = self.query.get("fieldManager", "") or self.user_agent.split("/", 1)[0] or "unknown"
        return Context(
            self.user,
            manager,
            self.query.get("dryRun", "") == "All",
            self.query.get("fieldValidation", "") or "Warn",
            self.query.get("force", "") in options.TRUE,
        )

    def matches(self) -> Matches:
        try:
            return matcher(*self._selectors())
        except SelectorError as problem:
            raise errors.bad_request(str(problem)) from problem

    def condition(self) -> Equals | None:
        """Return what an index can answer of the selectors, which are valid."""
        return indexed_condition(*self._selectors())

    def _selectors(self) -> tuple[str, str, frozenset[str]]:
        """Label selector, field selector, and the fields that it may use, in terms of what is stored."""
        fields, supported = self.query.get("fieldSelector", ""), self.kind.fields
        if self.kind.group == event_forms.GROUP:
            parse_fields(fields, supported)
            fields, supported = event_forms.core_selector(fields), self.server.core("events").fields
        return self.query.get("labelSelector", ""), fields, supported


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
    server, kind = request.server, request.kind
    if kind.verbs == ("create",):
        raise errors.method_not_allowed()
    if request.subresource == "log":
        from wrpo_devcluster.apiserver.endpoints.logs import stream_logs

        return Answer(content_type="text/plain", stream=await stream_logs(request))
    view = view_of(request.accept, kind, request.query.get("includeObject", "Metadata"), server.clock)
    if not request.name:
        return _watch(request, view) if request.is_watch else list_body(request, view)
    parse_past_version(request.query.get("resourceVersion", ""), server.store.rv)
    record = server.store.get(kind.storage_key, request.namespace or "", request.name)
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
        request.server.store,
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
    view = view_of(request.accept, request.kind, request.query.get("includeObject", "Metadata"), request.server.clock)
    if view.transform is not None:
        return Answer(status, encode(view.transform(obj)))
    meta = obj["metadata"]
    record = request.server.store.get(request.kind.storage_key, meta.get("namespace", ""), meta.get("name", ""))
    # What was just stored has its text; a dry run or the end of the object stored nothing.
    return Answer(status, record.text if record is not None and record.obj is obj else encode(obj))


def _post(request: ResourceRequest, context: Context, body: Any) -> Answer:
    server, kind = request.server, request.kind
    if kind.verbs == ("create",):
        return Answer(201, encode(reviews.review(server, kind, request.namespace, body, context)))
    if request.subresource == "token":
        served = Kind(
            "authentication.k8s.io", "v1", "TokenRequest", "serviceaccounts", True,
            schema.builtin(definition_of("authentication.k8s.io", "TokenRequest")),
        )  # fmt: skip
        found = reviews.token_request(server, served, request.namespace or "", request.name, body, context)
        return Answer(201, encode(found))
    if request.subresource == "binding":
        return Answer(201, encode(subresources.bind(server, kind, request.namespace, request.name, body, context)))
    if request.subresource == "eviction":
        return Answer(201, encode(eviction.evict(server, kind, request.namespace, request.name, body, context)))
    if request.subresource:
        raise errors.method_not_allowed()
    if (kind.namespaced and request.namespace is None) or (request.name and kind.custom is None):
        raise errors.method_not_allowed()
    if kind.group == event_forms.GROUP:
        created = event_requests.create(server, kind, request.namespace, body, context)
    else:
        created = server.engine.create(kind, request.namespace, body, context, name=request.name)
    return _shown(request, created, 201)


def _put(request: ResourceRequest, context: Context, body: Any) -> Answer:
    server, kind = request.server, request.kind
    if not request.name:
        raise errors.method_not_allowed()
    if request.subresource == "scale":
        return Answer(200, encode(subresources.put_scale(server, kind, request.namespace, request.name, body, context)))
    if kind.group == event_forms.GROUP:
        return _shown(request, event_requests.update(server, kind, request.namespace, request.name, body, context), 200)
    obj, created = server.engine.update(
        kind, request.namespace, request.name, body, context, subresource=request.subresource
    )
    return _shown(request, obj, 201 if created else 200)


def _check_patch(request: ResourceRequest, media: str) -> None:
    if not request.name:
        raise errors.method_not_allowed()
    accepted = [name for name in PATCH_TYPES if request.kind.custom is None or "strategic" not in name]
    if media not in accepted:
        raise errors.unsupported_media_type(accepted)


def _patch(request: ResourceRequest, context: Context, media: str, body: bytes, parse: Parser) -> Answer:
    server, kind = request.server, request.kind
    style = PATCH_TYPES[media]
    content = parse(media, body)
    patch.check_form(content, style)
    if request.subresource == "scale":
        found = subresources.patch_scale(server, kind, request.namespace, request.name, content, style, context)
        return Answer(200, encode(found))
    if kind.group == event_forms.GROUP:
        found = event_requests.patch_event(server, kind, request.namespace, request.name, content, style, context)
        return _shown(request, found, 200)
    obj, created = server.engine.patch(
        kind, request.namespace, request.name, content, context, style=style, subresource=request.subresource
    )
    return _shown(request, obj, 201 if created else 200)


def _delete(request: ResourceRequest, context: Context, body: Any) -> Answer:
    server, kind = request.server, request.kind
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
        obj, gone = server.deleter.delete(kind, request.namespace, request.name, wanted, context)
        return Answer(200, encode(success(kind, obj) if gone else obj))
    return _delete_collection(request, context, wanted)


def _delete_collection(request: ResourceRequest, context: Context, wanted: DeleteOptions) -> Answer:
    server, kind = request.server, request.kind
    if kind.namespaced and request.namespace is None:
        raise errors.method_not_allowed()
    matches = request.matches()
    deleted = []
    for record in list(server.store.list(kind.storage_key, request.namespace)):
        if matches is None or matches(record.obj):
            deleted.append(record)
            server.deleter.delete(kind, request.namespace, record.obj["metadata"]["name"], wanted, context)
    meta: JsonObject = {"resourceVersion": str(server.store.rv)}
    if kind.custom is not None:
        meta["continue"] = ""
    items = [record.obj if kind.custom is not None else without_type(record.obj) for record in deleted]
    return Answer(
        200, encode({"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": meta, "items": items})
    )
