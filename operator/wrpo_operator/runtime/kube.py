"""Access to the Kubernetes API with plain dicts. Only this module imports the Kubernetes client.

Every HTTP and transport error becomes a `KubeError` here, so that callers decide on `code` and never on a library's
exception. Nothing is retried here: the work queue retries after reading the state of the cluster again.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol
from urllib.parse import urlencode
from urllib.request import getproxies

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from typing_extensions import override

from wrpo_operator.runtime.decode import UndecodableError, decode, encode, objects_in
from wrpo_operator.runtime.errors import KubeError, NoConnectionError, refusal, transport_error
from wrpo_operator.runtime.paging import Pager
from wrpo_operator.runtime.resources import JsonObject, Resource, name_of, namespace_of

__all__ = [
    "HttpKube",
    "KubeClient",
    "KubeError",
    "NoConnectionError",
    "Page",
    "Request",
    "list_all",
    "load_configuration",
]
FIELD_MANAGER = "wrpo-operator"
_MANAGED = {"fieldManager": FIELD_MANAGER}
REQUEST_TIMEOUT_S = 20.0
CONNECTIONS = 24
"""Maximum connections to the API server, which shields it from bursts; each connection holds 256 KiB."""
APPLY_TYPE = "application/apply-patch+yaml; charset=utf-8"
"""With its parameter, so that the client library sends the body as it is."""
MERGE_PATCH_TYPE = "application/merge-patch+json"
IN_CLUSTER_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
Propagation = Literal["Background", "Foreground", "Orphan"]
METHODS = {
    "get": "GET",
    "list": "GET",
    "discover": "GET",
    "create": "POST",
    "update": "PUT",
    "apply": "PATCH",
    "patch": "PATCH",
    "delete": "DELETE",
}
"""Verb of a request -> its HTTP method."""
OnRequest = Callable[[str, str, int, float], None]
"""(verb, plural of the resource with its subresource, HTTP status or 0, seconds)"""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    items: list[JsonObject]
    """With apiVersion and kind set."""
    version: str
    """The list's resourceVersion, the same for all its pages."""
    more: str = ""
    """Start of the next page; empty on the last one."""
    num_cut: int = 0
    """Number of skipped parts: they nest too deep, or are items that are not objects."""


class KubeClient(Protocol):
    """Requests of the operator to the API server. Every method raises KubeError."""

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        """Return an object; KubeError 404 if it does not exist."""
        ...

    def pages(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[Page]:
        """Yield a list page by page, so that a long list is never in memory as a whole. `list_all` collects it."""
        ...

    async def create(self, resource: Resource, body: JsonObject) -> JsonObject:
        """POST; return the object as it is stored, KubeError 409 if it exists."""
        ...

    async def replace(self, resource: Resource, body: JsonObject) -> JsonObject:
        """PUT; a stale resourceVersion raises KubeError 409."""
        ...

    async def apply(self, resource: Resource, body: JsonObject) -> JsonObject:
        """Server-side apply as `wrpo-operator`, with force."""
        ...

    async def merge_patch(
        self, resource: Resource, name: str, namespace: str | None, patch: JsonObject, *, subresource: str = ""
    ) -> JsonObject:
        """Merge `patch` into an object (RFC 7386), or into its subresource; return the result."""
        ...

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        *,
        uid: str | None = None,
        propagation: Propagation = "Background",
    ) -> JsonObject:
        """Delete an object; with `uid` only that one, not a later one of the same name (KubeError 409)."""
        ...

    async def served(self, resource: Resource) -> bool:
        """Return whether the resource type is served, i.e. its CRD is installed and established."""
        ...


async def list_all(
    client: KubeClient, resource: Resource, namespace: str | None = None, **selectors: str
) -> list[JsonObject]:
    """Return all items of a list; `label_selector` and `field_selector` as in KubeClient.pages."""
    return [item async for page in client.pages(resource, namespace, **selectors) for item in page.items]


async def load_configuration(kubeconfig: str | None = None, context: str | None = None) -> Configuration:
    """Find the API server: `kubeconfig`, else $KUBECONFIG, else in-cluster, else ~/.kube/config."""
    configuration = Configuration()
    configuration.retries = None
    configuration.connection_pool_maxsize = CONNECTIONS
    # Without a proxy to find in the environment, aiohttp would still read ~/.netrc in a thread for every request.
    configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
    path = kubeconfig or os.environ.get("KUBECONFIG")
    try:
        if path:
            await _load_kubeconfig(configuration, path, context)
        elif os.environ.get("KUBERNETES_SERVICE_HOST") and IN_CLUSTER_TOKEN.exists():
            kube_config.load_incluster_config(client_configuration=configuration)
        else:
            await _load_kubeconfig(configuration, str(Path.home() / ".kube" / "config"), context)
    except (kube_config.ConfigException, OSError) as error:
        where = path or "~/.kube/config (KUBECONFIG is not set, and this process does not run in a pod)"
        raise NoConnectionError(
            f"cannot read cluster credentials from {where}: {error}. "
            "Set KUBECONFIG or pass --kubeconfig; `wrpo dev up` starts an embedded cluster."
        ) from error
    return configuration


async def _load_kubeconfig(configuration: Configuration, path: str, context: str | None) -> None:
    await kube_config.load_kube_config(
        config_file=path, context=context, client_configuration=configuration, persist_config=False
    )


class _Session:
    """HTTP session of one set of credentials. It is closed once it is replaced and no request uses it."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.rest = RESTClientObject(configuration)
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextmanager
    def used(self) -> Iterator[None]:
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def close(self) -> None:
        await self.rest.close()

    async def retire(self) -> None:
        await self._unused.wait()
        await self.close()


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the API server."""

    verb: str
    resource: str
    """Plural of the resource, with its subresource."""
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    """Parameters; empty ones are left out."""
    body: JsonObject | bytes | None = None
    content_type: str = "application/json"

    @property
    def method(self) -> str:
        """The HTTP method of the verb."""
        return METHODS[self.verb]


class HttpKube(KubeClient):
    """KubeClient over HTTPS. Credentials are read again once when the server replies 401 (token rotation)."""

    def __init__(
        self, configuration: Configuration, *, kubeconfig: str | None = None, context: str | None = None
    ) -> None:
        self._source = (kubeconfig, context)
        self._session = _Session(configuration)
        self._reload = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._pagers: dict[tuple[Resource, str | None], Pager] = {}
        self.on_request: OnRequest = lambda _verb, _resource, _code, _seconds: None
        """Called after each request."""

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> HttpKube:
        """Read credentials; contacts no server."""
        return cls(await load_configuration(kubeconfig, context), kubeconfig=kubeconfig, context=context)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._session.configuration.host)

    async def close(self) -> None:
        """End all connections. No request is possible afterwards."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._session.close()

    @override
    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        return await self.ask(Request("get", resource.plural, resource.path(namespace, name)))

    @override
    async def pages(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[Page]:
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        # Removed while in use: of two concurrent lists the second starts with small pages.
        pager = self._pagers.pop((resource, namespace), None) or Pager()
        cuts: list[str] = []
        on_cut = partial(cuts.append, resource.plural)
        kind = {"apiVersion": resource.api_version, "kind": resource.kind}
        while True:
            query["limit"] = str(pager.limit)
            cuts.clear()
            request = Request("list", resource.plural, resource.path(namespace), query)
            data = await self._reply(request)
            answer = self._content(request, data, on_cut)
            metadata = answer.get("metadata") or {}
            items = [{**item, **kind} for item in objects_in(answer, on_cut)]
            more = str(metadata.get("continue") or "")
            pager.read(len(items), len(data))
            yield Page(items, str(metadata.get("resourceVersion", "")), more, len(cuts))
            if not more:
                pager.begin()
                self._pagers[resource, namespace] = pager
                return
            query["continue"] = more

    @override
    async def create(self, resource: Resource, body: JsonObject) -> JsonObject:
        path = resource.path(namespace_of(body) or None)
        return await self.ask(Request("create", resource.plural, path, _MANAGED, body))

    @override
    async def replace(self, resource: Resource, body: JsonObject) -> JsonObject:
        path = resource.path(namespace_of(body) or None, name_of(body))
        return await self.ask(Request("update", resource.plural, path, _MANAGED, body))

    @override
    async def apply(self, resource: Resource, body: JsonObject) -> JsonObject:
        path = resource.path(namespace_of(body) or None, name_of(body))
        query = _MANAGED | {"force": "true"}
        return await self.ask(Request("apply", resource.plural, path, query, encode(body), APPLY_TYPE))

    @override
    async def merge_patch(
        self, resource: Resource, name: str, namespace: str | None, patch: JsonObject, *, subresource: str = ""
    ) -> JsonObject:
        kind = f"{resource.plural}/{subresource}" if subresource else resource.plural
        path = resource.path(namespace, name, subresource)
        return await self.ask(Request("patch", kind, path, _MANAGED, patch, MERGE_PATCH_TYPE))

    @override
    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        *,
        uid: str | None = None,
        propagation: Propagation = "Background",
    ) -> JsonObject:
        body: JsonObject = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        return await self.ask(Request("delete", resource.plural, resource.path(namespace, name), body=body))

    @override
    async def served(self, resource: Resource) -> bool:
        try:
            answer = await self.ask(Request("discover", resource.plural, resource.group_path))
        except KubeError as error:
            if error.not_found:
                return False
            raise
        return any(item.get("name") == resource.plural for item in answer.get("resources") or [])

    async def ask(self, request: Request) -> JsonObject:
        """Return the content of the reply to a request."""
        return self._content(request, await self._reply(request))

    async def _reply(self, request: Request) -> bytes:
        """Return the reply to a request. `on_request` receives verb, resource, status and time."""
        began, code = perf_counter(), 0
        try:
            async with self._answer(request, aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)) as response:
                data = await response.read()
            code = response.status
        finally:
            self.on_request(request.verb, request.resource, code, perf_counter() - began)
        if response.status >= 400:
            raise refusal(request.method, request.path, response, data)
        return data

    @staticmethod
    def _content(request: Request, data: bytes, on_cut: Callable[[], None] = lambda: None) -> JsonObject:
        """Return the decoded reply; `on_cut` is called for each part that nests too deep."""
        try:
            answer = decode(data, on_cut) if data else {}
        except UndecodableError as error:
            where = f"{request.method} {request.path}"
            raise KubeError(0, "Undecodable", f"the response is {error}", request=where) from error
        return answer if isinstance(answer, dict) else {}

    async def stream_lines(self, path: str, query: Mapping[str, str] | None = None) -> AsyncIterator[bytes]:
        """Yield the lines of a long reply (logs, watches) until the server ends it; no total timeout."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S)
        async with self._answer(Request("get", "", path, query or {}), timeout) as response:
            if response.status >= 400:
                raise refusal("GET", path, response, await response.read())
            async for line in response.content:
                yield line

    @asynccontextmanager
    async def _answer(self, request: Request, timeout: aiohttp.ClientTimeout) -> AsyncIterator[aiohttp.ClientResponse]:
        """Hold a reply and its session; transport errors become KubeError."""
        given = {key: value for key, value in request.query.items() if value}
        url = f"{self.server}{request.path}" + (f"?{urlencode(given)}" if given else "")
        fixed = {"Accept": "application/json", "Content-Type": request.content_type, "User-Agent": FIELD_MANAGER}
        try:
            for last_try in (False, True):
                session = self._session
                with session.used():
                    headers = fixed | await _authorization(session.configuration)
                    answer = await session.rest.request(
                        request.method, url, headers=headers, body=request.body, _request_timeout=timeout
                    )
                    response: aiohttp.ClientResponse = answer.response
                    async with response:
                        if response.status != 401 or last_try:
                            yield response
                            return
                await self._replace(session)
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise transport_error(request.method, request.path, self.server, error) from error

    async def kopf_login(self) -> dict[str, Any]:
        """Read the credentials again and return them as arguments of kopf.ConnectionInfo."""
        configuration = await load_configuration(*self._source)
        scheme, token = await _credentials(configuration)
        return {
            "server": configuration.host,
            "ca_path": configuration.ssl_ca_cert,
            "insecure": not configuration.verify_ssl,
            "scheme": scheme or None,
            "token": token or None,
            "certificate_path": configuration.cert_file,
            "private_key_path": configuration.key_file,
            "proxy_url": configuration.proxy,
        }

    async def _replace(self, refused: _Session) -> None:
        """Read credentials again, unless another request has done so; requests in progress keep their session."""
        async with self._reload:
            if self._session is not refused:
                return
            self._session = _Session(await load_configuration(*self._source))
            task = asyncio.create_task(refused.retire(), name="retire-session")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)


async def _authorization(configuration: Configuration) -> dict[str, str]:
    scheme, token = await _credentials(configuration)
    return {"Authorization": f"{scheme} {token}"} if token else {}


async def _credentials(configuration: Configuration) -> tuple[str, str]:
    """Return scheme and token of the Authorization header; empty with a client certificate."""
    value = str(await configuration.get_api_key_with_prefix("BearerToken") or "").strip()
    scheme, _, token = value.partition(" ")
    return (scheme.capitalize(), token.strip()) if token else ("Bearer" if scheme else "", scheme)
