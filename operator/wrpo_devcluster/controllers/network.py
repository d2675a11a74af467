"""Endpoints controller, and the addresses of Services."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from typing_extensions import override

from wrpo_devcluster.client import ENDPOINTS, PODS, SERVICES, ApiError, Client, JsonObject, WatchEvent
from wrpo_devcluster.clock import Clock
from wrpo_devcluster.controllers.base import Controller, Watched, WatchHub, get_or_none, own_key
from wrpo_devcluster.objects import (
    is_deleting,
    is_ready,
    is_terminal,
    key_of,
    labels_of,
    matches,
    selector_text,
    split_key,
)

_CLUSTER_PREFIX = "10.96."
_PROXY_PREFIX = "127.96."


def pick_address(prefix: str, seed: str, taken: Iterable[str]) -> str:
    """Choose a free `prefix.y.z` that is the same for the same seed while it is free."""
    used = set(taken)
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    for step in range(65534):
        number = 1 + (start + step) % 65534
        address = f"{prefix}.{number // 256}.{number % 256}"
        if number % 256 not in {0, 255} and address not in used:
            return address
    raise RuntimeError(f"all addresses of {prefix}.0.0/16 are in use")


def proxy_address(service: JsonObject) -> str | None:
    """Return the loopback address that represents a Service's clusterIP 10.96.y.z; None for a headless one.

    Only loopback addresses can be listened on without privileges, so the proxy listens on 127.96.y.z instead.
    """
    address = str(service["spec"].get("clusterIP") or "")
    if not address.startswith(_CLUSTER_PREFIX):
        return None
    return _PROXY_PREFIX + address.removeprefix(_CLUSTER_PREFIX)


class ServiceSelectors:
    """Index of the services that select a pod.

    Invariant: `selecting` returns the keys of exactly the services whose last noted selector its labels match.
    """

    def __init__(self) -> None:
        self._selectors: dict[str, dict[str, str]] = {}
        self._by_label: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        """(namespace, label, value) -> services that select by it, each under one of its labels."""

    def note(self, key: str, selector: dict[str, str]) -> None:
        """Note a service's selector; an empty one selects nothing."""
        namespace, _ = split_key(key)
        old = self._selectors.pop(key, None)
        if old:
            place = (namespace, *min(old.items()))
            self._by_label[place].discard(key)
            if not self._by_label[place]:
                del self._by_label[place]
        if selector:
            self._selectors[key] = selector
            self._by_label[(namespace, *min(selector.items()))].add(key)

    def selecting(self, namespace: str, labels: dict[str, str]) -> set[str]:
        """Return the keys of the services of a namespace that select a pod with these labels."""
        return {
            key
            for label, value in labels.items()
            for key in self._by_label.get((namespace, label, value), ())
            if self._selectors[key].items() <= labels.items()
        }


class EndpointsController(Controller):
    """Controller of Services. A changed pod enqueues the Services that select it or selected it before."""

    name = "endpoint-controller"

    def __init__(self, client: Client, clock: Clock) -> None:
        super().__init__(client, clock)
        self._selectors = ServiceSelectors()
        self._labels: dict[str, dict[str, str]] = {}
        """Of every pod, by uid."""

    @override
    def watched(self) -> Sequence[Watched]:
        return (Watched(SERVICES, own_key),)

    @override
    def attach(self, hub: WatchHub) -> None:
        hub.subscribe(SERVICES, self._observe_service)
        super().attach(hub)
        hub.subscribe(PODS, self._observe_pod)

    def _observe_service(self, event: WatchEvent) -> None:
        selector = event.object["spec"].get("selector") or {}
        self._selectors.note(key_of(event.object), selector if event.type != "DELETED" else {})

    def _observe_pod(self, event: WatchEvent) -> None:
        meta = event.object["metadata"]
        before, labels = self._labels.get(meta["uid"], {}), labels_of(event.object)
        if event.type == "DELETED":
            self._labels.pop(meta["uid"], None)
        else:
            self._labels[meta["uid"]] = labels
        for key in self._selectors.selecting(meta["namespace"], before) | self._selectors.selecting(
            meta["namespace"], labels
        ):
            self.queue.add(key)

    @override
    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        found = await get_or_none(self.client, SERVICES, name, namespace)
        current = await get_or_none(self.client, ENDPOINTS, name, namespace)
        if found is None:
            if current is not None:
                await self.client.delete(ENDPOINTS, name, namespace, propagation="Background")
            return None
        if is_deleting(found) or not found["spec"].get("selector"):
            return None
        selected = await self.client.list(PODS, namespace, label_selector=selector_text(found["spec"]["selector"]))
        subsets = endpoint_subsets(found, selected)
        if current is None:
            await self._create(found, subsets)
        elif (current.get("subsets") or []) != subsets:
            patch = {"subsets": subsets or None}
            await self.client.patch(ENDPOINTS, name, namespace, patch)
        return None

    async def _create(self, service: JsonObject, subsets: list[JsonObject]) -> None:
        meta = service["metadata"]
        labels = labels_of(service)
        body = {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {
                "name": meta["name"],
                "namespace": meta["namespace"],
                **({"labels": labels} if labels else {}),
            },
            **({"subsets": subsets} if subsets else {}),
        }
        try:
            await self.client.create(ENDPOINTS, body, meta["namespace"])
        except ApiError as error:
            if error.code not in {403, 409}:
                raise


def endpoint_subsets(service: JsonObject, pods: list[JsonObject]) -> list[JsonObject]:
    """Sort the selected pods' addresses into ready and not ready, per set of ports."""
    spec = service["spec"]
    groups: dict[tuple[tuple[str, int, str], ...], dict[str, list[JsonObject]]] = {}
    for pod in sorted(pods, key=lambda p: p["metadata"]["name"]):
        address = (pod.get("status") or {}).get("podIP")
        if not address or is_terminal(pod) or not matches({"matchLabels": spec["selector"]}, labels_of(pod)):
            continue
        ports = tuple(_ports(spec, pod))
        counts_as_ready = is_ready(pod) and not is_deleting(pod)
        bucket = "addresses" if counts_as_ready or spec.get("publishNotReadyAddresses") else "notReadyAddresses"
        meta = pod["metadata"]
        entry = {
            "ip": address,
            "nodeName": pod["spec"].get("nodeName"),
            "targetRef": {
                "kind": "Pod",
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
            },
        }
        groups.setdefault(ports, {}).setdefault(bucket, []).append(entry)
    return [
        {
            **{k: buckets[k] for k in ("addresses", "notReadyAddresses") if k in buckets},
            **({"ports": [_port_entry(*p) for p in ports]} if ports else {}),
        }
        for ports, buckets in groups.items()
    ]


def _port_entry(name: str, number: int, protocol: str) -> JsonObject:
    return {**({"name": name} if name else {}), "port": number, "protocol": protocol}


def _ports(spec: JsonObject, pod: JsonObject) -> Iterable[tuple[str, int, str]]:
    for port in spec.get("ports") or []:
        target = port.get("targetPort", port["port"])
        if isinstance(target, str) and not target.isdigit():
            named = (
                declared["containerPort"]
                for container in pod["spec"]["containers"]
                for declared in container.get("ports") or []
                if declared.get("name") == target
            )
            target = next(named, None)
        if target is not None:
            yield port.get("name", ""), int(target), port.get("protocol", "TCP")
