"""Lists: selection, pages, and forms of items."""

from __future__ import annotations

import base64
import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.options import check_list, integer
from wrpo_devcluster.apiserver.endpoints.negotiate import View
from wrpo_devcluster.apiserver.endpoints.request import Answer, ResourceRequest
from wrpo_devcluster.apiserver.endpoints.watch import parse_past_version
from wrpo_devcluster.apiserver.printers.tables import partial
from wrpo_devcluster.apiserver.storage.store import Record, encode
from wrpo_devcluster.client import JsonObject

_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without"
    " the continue parameter, or use the continue token in this response to retrieve the remainder of the results."
    " Continuing with the provided token results in an inconsistent list - objects that were created, modified, or"
    " deleted between the time the first chunk was returned and now may show up in the list."
)
_LATEST = -1
"""Version in a continue token whose next page may be of a later version."""
_FORM = "meta.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Place:
    """Start of a page: the first key (namespace, name) that is not before `start`."""

    version: int
    start: tuple[str, str]


def continue_token(version: int, scope: str | None, last: tuple[str, str]) -> str:
    """Return the continue token after the key `last`, of a list in the namespace `scope` (None: all)."""
    return _token(Place(version, (last[0], f"{last[1]}\0")), scope)


def _token(place: Place, scope: str | None) -> str:
    namespace, name = place.start
    start = f"{namespace}/{name}" if scope is None and namespace else name
    return base64.urlsafe_b64encode(encode({"v": _FORM, "rv": place.version, "start": start})).decode()


def parse_continue(token: str, scope: str | None) -> Place:
    """Parse a continue token; raise ValueError if the real server refuses it."""
    try:
        found = json.loads(base64.b64decode(token.encode() + b"=" * (-len(token) % 4), b"-_", validate=True))
        form, version, start = found["v"], found["rv"], found["start"]
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"invalid continue token: continue key is not valid: {problem}") from problem
    if form != _FORM or type(version) is not int or not isinstance(start, str):
        raise ValueError(f"invalid continue token: continue key is not valid: unrecognized fields {found}")
    if version == 0 or not start:
        what = "incorrect encoded start resourceVersion" if start else "encoded start key empty"
        raise ValueError(f"invalid continue token: continue key is not valid: {what} (version {_FORM})")
    namespace, slash, name = start.partition("/")
    return Place(version, (namespace, name) if slash else (scope or "", start))


def _key(record: Record) -> tuple[str, str]:
    meta = record.obj["metadata"]
    return (meta.get("namespace", ""), meta["name"])


def _limit(query: Mapping[str, str]) -> int:
    """Return the greatest size of a page, 0 for all. A list of any version comes from a cache, which has no pages."""
    limit = integer(query, "limit")
    return 0 if query.get("resourceVersion") == "0" and not query.get("continue") else max(limit, 0)


def _place(request: ResourceRequest) -> Place | None:
    token = request.query.get("continue", "")
    if not token:
        return None
    try:
        place = parse_continue(token, request.namespace)
    except ValueError as problem:
        raise errors.bad_request(str(problem)) from problem
    if request.query.get("resourceVersion", "") not in {"", "0"}:
        raise errors.bad_request("specifying resource version is not allowed when using continue")
    return place


def _exact_version(request: ResourceRequest, limit: int) -> int | None:
    """Return the version that the list must have, None for the latest; raise 504 for a future one."""
    query, store = request.query, request.services.store
    wanted = parse_past_version(query.get("resourceVersion", ""), store.rv)
    match = query.get("resourceVersionMatch", "")
    # A page of a version without resourceVersionMatch is of exactly that version.
    return wanted if match == "Exact" or (wanted and limit and not match) else None


def _records(request: ResourceRequest, place: Place | None, limit: int) -> tuple[Sequence[Record], int]:
    """Return the records to select from, and their version."""
    store, key = request.services.store, request.kind.storage_key
    exact = _exact_version(request, limit) if place is None else place.version
    if exact is None or exact == _LATEST:
        return list(store.list(key, request.namespace, request.condition())), store.rv
    try:
        return store.list_at(key, request.namespace, exact), exact
    except LookupError as problem:
        if place is None:
            raise errors.expired(f"The resourceVersion for the provided list is too old: {problem}") from problem
        refusal = errors.expired(_EXPIRED)
        refusal.status["metadata"] = {"continue": _token(Place(_LATEST, place.start), request.namespace)}
        raise refusal from problem


def select(request: ResourceRequest) -> tuple[list[Record], JsonObject]:
    """Return the records of one page, and the list's metadata."""
    check_list(request.query)
    integer(request.query, "timeoutSeconds")
    matches, limit, place = request.matches(), _limit(request.query), _place(request)
    records, version = _records(request, place, limit)
    if place is not None:
        records = records[bisect.bisect_left([_key(record) for record in records], place.start) :]
    page: list[Record] = []
    meta: JsonObject = {"resourceVersion": str(version)}
    for index, record in enumerate(records):
        if limit > 0 and len(page) == limit:
            if matches is None or any(matches(rest.obj) for rest in records[index:]):
                meta["continue"] = continue_token(version, request.namespace, _key(page[-1]))
                if matches is None:
                    meta["remainingItemCount"] = len(records) - index
            break
        if matches is None or matches(record.obj):
            page.append(record)
    return page, meta


def list_body(request: ResourceRequest, view: View) -> Answer:
    """Return the reply to a list, in the form that the client accepts."""
    page, meta = select(request)
    kind = request.kind
    if view.style == "Table":
        return Answer(body=encode(view.table([record.obj for record in page], meta)))
    if view.style:
        items = [partial(record.obj) for record in page]
        body = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items}
        return Answer(body=encode(body))
    head = f'{{"kind":"{kind.list_kind}","apiVersion":"{kind.api_version}","metadata":'.encode()
    if view.transform is not None:
        texts = [encode(view.transform(record.obj)) for record in page]
    elif kind.custom is not None:
        meta.setdefault("continue", "")
        texts = [record.text for record in page]
    else:
        texts = [_untyped(record) for record in page]
    return Answer(body=head + encode(meta) + b',"items":[' + b",".join(texts) + b"]}")


def _untyped(record: Record) -> bytes:
    """Cut kind and apiVersion, which are first in the stored text, from an item of a built-in list."""
    obj = record.obj
    prefix = encode({"kind": obj["kind"], "apiVersion": obj["apiVersion"]})[:-1] + b","
    if record.text.startswith(prefix):
        return b"{" + record.text[len(prefix) :]
    return encode(without_type(obj))


def without_type(obj: JsonObject) -> JsonObject:
    """Return an item of a built-in list, whose items have no kind and apiVersion."""
    return {key: value for key, value in obj.items() if key not in {"kind", "apiVersion"}}
