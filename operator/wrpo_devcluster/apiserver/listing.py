"""Lists: selection, pages, and their forms."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from wrpo_devcluster.apiserver import errors
from wrpo_devcluster.apiserver.negotiate import View
from wrpo_devcluster.apiserver.store import Record, continue_token, encode, parse_continue
from wrpo_devcluster.apiserver.tables import partial
from wrpo_devcluster.apiserver.watch import parse_version
from wrpo_devcluster.client import JsonObject

if TYPE_CHECKING:
    from wrpo_devcluster.apiserver.resources import Answer, ResourceRequest


def _key(record: Record) -> tuple[str, str]:
    meta = record.obj["metadata"]
    return (meta.get("namespace", ""), meta["name"])


def select(request: ResourceRequest) -> tuple[list[Record], JsonObject]:
    """Return records of one page, and the list's metadata."""
    store, query = request.server.store, request.query
    matches = request.matches()
    limit_text = query.get("limit", "") or "0"
    if not limit_text.lstrip("-").isdigit():
        raise errors.bad_request(f'strconv.ParseInt: parsing "{limit_text}": invalid syntax')
    limit, token = int(limit_text), query.get("continue", "")
    version = store.rv
    wanted = parse_version(query.get("resourceVersion", ""))
    if wanted > store.rv:
        body = {
            "retryAfterSeconds": 1,
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        }
        raise errors.error(504, "Timeout", f"Too large resource version: {wanted}, current: {store.rv}", body)
    records = list(store.list(request.kind.storage_key, request.namespace, request.condition()))
    if token:
        try:
            version, last = parse_continue(token)
        except ValueError as problem:
            raise errors.bad_request(str(problem)) from problem
        records = records[bisect.bisect_right([_key(record) for record in records], last) :]
    page: list[Record] = []
    meta: JsonObject = {"resourceVersion": str(version)}
    for index, record in enumerate(records):
        if limit > 0 and len(page) == limit:
            if matches is None or any(matches(rest.obj) for rest in records[index:]):
                meta["continue"] = continue_token(version, *_key(page[-1]))
                if matches is None:
                    meta["remainingItemCount"] = len(records) - index
            break
        if matches is None or matches(record.obj):
            page.append(record)
    return page, meta


def list_body(request: ResourceRequest, view: View) -> Answer:
    from wrpo_devcluster.apiserver.resources import Answer

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
    """Items of built-in lists leave out kind and apiVersion, which stand first in the stored text."""
    obj = record.obj
    prefix = encode({"kind": obj["kind"], "apiVersion": obj["apiVersion"]})[:-1] + b","
    if record.text.startswith(prefix):
        return b"{" + record.text[len(prefix) :]
    return encode({key: value for key, value in obj.items() if key not in {"kind", "apiVersion"}})
