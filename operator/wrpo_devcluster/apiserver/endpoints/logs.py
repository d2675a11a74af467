"""Container logs: GET pods/NAME/log."""

from __future__ import annotations

from collections.abc import AsyncIterator

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.endpoints.request import ResourceRequest
from wrpo_devcluster.client import LogOptions

_TRUE = {"true", "1"}


async def stream_logs(request: ResourceRequest) -> AsyncIterator[bytes]:
    """Yield chunks of a container's log. Refusals come before the first chunk."""
    services, query = request.services, request.query
    pod = services.pipeline.get(request.kind, request.namespace, request.name)
    spec = pod["spec"]
    names = [container["name"] for group in ("initContainers", "containers") for container in spec.get(group) or ()]
    container = query.get("container", "")
    if not container:
        regular = [entry["name"] for entry in spec.get("containers") or ()]
        if len(regular) != 1:
            raise errors.bad_request(
                f"a container name must be specified for pod {request.name}, choose one of: [{' '.join(names)}]"
            )
        container = regular[0]
    if container not in names:
        raise errors.bad_request(f"container {container} is not valid for pod {request.name}")
    if services.attached.log_reader is None:
        raise errors.internal("no kubelet runs in this control plane, so it has no container logs")
    options = LogOptions(
        follow=query.get("follow", "") in _TRUE,
        tail_lines=_number(query.get("tailLines")),
        since_s=_number(query.get("sinceSeconds")),
        previous=query.get("previous", "") in _TRUE,
        timestamps=query.get("timestamps", "") in _TRUE,
    )
    chunks = services.attached.log_reader.read(request.namespace or "", request.name, container, options)
    # The first chunk shows whether the log can be read.
    iterator = chunks.__aiter__()
    try:
        first = await anext(iterator)
    except StopAsyncIteration:
        first = b""
    return _limited(first, iterator, _number(query.get("limitBytes")))


async def _limited(first: bytes, rest: AsyncIterator[bytes], limit: int | None) -> AsyncIterator[bytes]:
    left = limit
    chunk = first
    while True:
        if left is not None:
            chunk = chunk[:left]
            left -= len(chunk)
        if chunk:
            yield chunk
        if left == 0:
            return
        try:
            chunk = await anext(rest)
        except StopAsyncIteration:
            return


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit():
        raise errors.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)
