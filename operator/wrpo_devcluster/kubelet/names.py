"""Name service of the cluster: addresses of Service names, also as files that tools in pods read."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from wrpo_devcluster.client import ENDPOINTS, PODS, SERVICES, JsonObject, WatchEvent
from wrpo_devcluster.controllers.base import WatchHub
from wrpo_devcluster.controllers.network import proxy_address
from wrpo_devcluster.objects import is_deleting, is_terminal, key_of, labels_of, matches

_DOMAIN = ".svc.cluster.local"

NSLOOKUP = """#!/bin/sh
# Resolves from the embedded control plane's table. Images have nslookup, this machine may not.
address=$(awk -v name="$1" '$2 == name { print $1; exit }' "$WRPO_DEVCLUSTER_HOSTS" 2>/dev/null)
if [ -n "$address" ]; then printf 'Name:\\t%s\\nAddress: %s\\n' "$1" "$address"; exit 0; fi
echo "nslookup: can't resolve '$1'" >&2
exit 1
"""


class NameService:
    """Name service fed by watches. A headless Service has the address of its first endpoint."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._services: dict[str, JsonObject] = {}
        self._endpoints: dict[str, JsonObject] = {}
        self._hosts: dict[str, tuple[str, str]] = {}
        """Name of a pod -> (uid, address). While a pod terminates, its successor may already have the name."""

    def attach(self, hub: WatchHub) -> None:
        """Subscribe to Services, their endpoints and pods; call it before the hub starts."""
        self._directory.mkdir(parents=True, exist_ok=True)
        hub.subscribe(SERVICES, lambda e: self._observe(self._services, e))
        hub.subscribe(ENDPOINTS, lambda e: self._observe(self._endpoints, e))
        hub.subscribe(PODS, self._observe_pod)

    def resolve(self, namespace: str, name: str) -> str | None:
        """Return the address of `svc`, `svc.ns`, `svc.ns.svc` or the full name, or of a pod `host.svc...`."""
        short = _short(name)
        parts = short.split(".")
        if len(parts) == 1:
            return self._service(f"{namespace}/{parts[0]}")
        if len(parts) == 2:
            return self._service(f"{parts[1]}/{parts[0]}") or self._host(f"{namespace}/{short}")
        if len(parts) == 3:
            return self._host(f"{parts[2]}/{parts[0]}.{parts[1]}")
        return None

    def names_pod(self, name: str, pod: JsonObject) -> bool:
        """Return whether `name` is a headless Service that selects this pod, which starts before it is an endpoint."""
        namespace = pod["metadata"]["namespace"]
        short = _short(name)
        service_name, _, place = short.partition(".")
        service = self._services.get(f"{place or namespace}/{service_name}")
        if service is None or place not in {"", namespace} or service["spec"].get("clusterIP") != "None":
            return False
        selector = service["spec"].get("selector")
        return bool(selector) and matches({"matchLabels": selector}, labels_of(pod))

    def hosts_file(self, namespace: str) -> Path:
        """Return the file with the addresses of a namespace's names, in the form of /etc/hosts."""
        return self._directory / f"{namespace}.hosts"

    def _host(self, key: str) -> str | None:
        return self._hosts.get(key, ("", None))[1]

    def _service(self, key: str) -> str | None:
        service = self._services.get(key)
        if service is None:
            return None
        address = proxy_address(service)
        if address is not None or service["spec"].get("clusterIP") != "None":
            return address
        for subset in self._endpoints.get(key, {}).get("subsets") or []:
            for endpoint in subset.get("addresses") or []:
                return str(endpoint["ip"])
        return None

    def _observe(self, table: dict[str, JsonObject], event: WatchEvent) -> None:
        if event.type == "DELETED":
            table.pop(key_of(event.object), None)
        else:
            table[key_of(event.object)] = event.object
        self._write(event.object["metadata"]["namespace"])

    def _observe_pod(self, event: WatchEvent) -> None:
        spec, meta = event.object["spec"], event.object["metadata"]
        if not spec.get("subdomain"):
            return
        key = f"{meta['namespace']}/{spec.get('hostname') or meta['name']}.{spec['subdomain']}"
        address = (event.object.get("status") or {}).get("podIP")
        is_gone = event.type == "DELETED" or is_terminal(event.object) or is_deleting(event.object)
        if not is_gone and address:
            self._hosts[key] = (meta["uid"], address)
        elif self._hosts.get(key, ("",))[0] == meta["uid"]:
            del self._hosts[key]
        self._write(meta["namespace"])

    def _write(self, namespace: str) -> None:
        lines: dict[str, list[str]] = defaultdict(list)
        for key in self._services:
            owner, _, name = key.partition("/")
            address = self._service(key)
            if address is not None:
                local = [name] if owner == namespace else []
                lines[address] += [*local, f"{name}.{owner}", f"{name}.{owner}.svc", f"{name}.{owner}{_DOMAIN}"]
        for key, (_, address) in self._hosts.items():
            owner, _, name = key.partition("/")
            lines[address] += [*([name] if owner == namespace else []), f"{name}.{owner}{_DOMAIN}"]
        text = "".join(f"{address} {name}\n" for address, names in sorted(lines.items()) for name in names)
        path = self.hosts_file(namespace)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def sibling_host(name: str, pod: JsonObject) -> str:
    """Return the host in the name of a pod of the same subdomain, `host.subdomain...`; empty for any other name."""
    host, _, place = _short(name).partition(".")
    subdomain = pod["spec"].get("subdomain")
    is_sibling = subdomain and place in {subdomain, f"{subdomain}.{pod['metadata']['namespace']}"}
    return host if is_sibling else ""


def _short(name: str) -> str:
    return name.removesuffix(".").removesuffix(_DOMAIN).removesuffix(".svc")


def install_tools(directory: Path) -> Path:
    """Write small programs that images contain and this machine may lack; return their directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tool = directory / "nslookup"
    tool.write_text(NSLOOKUP, encoding="utf-8")
    tool.chmod(0o755)
    return directory
