"""ResourceQuota admission: usage by objects, refusal of writes that exceed a limit, and quota status."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from wrpo_devcluster import quantity
from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.schema.kinds import Kind, Registry
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.client import JsonObject

QUOTAS = "/resourcequotas"
_ENDED = {"Succeeded", "Failed"}
_MUST_BE_GIVEN = frozenset({"cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"})
"""Resources whose quota refuses pods with containers that do not set an amount."""
_KIBI = 1024
_AMOUNTS = ("requests.", "limits.")
_PLAIN_AMOUNTS = frozenset({"cpu", "memory", "ephemeral-storage"})


class Quotas:
    """Quotas of every namespace. Usage is summed from the objects themselves, so that it cannot drift."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    def check(self, kind: Kind, obj: JsonObject) -> None:
        """Refuse a new object that would exceed a quota of its namespace, in the real server's words."""
        namespace = obj["metadata"].get("namespace", "")
        name = obj["metadata"].get("name", "")
        wanted: dict[str, Decimal] = {}
        for record in self._store.list(QUOTAS, namespace):
            wanted = wanted or usage_of(kind, obj)
            quota, hard = record.obj["metadata"]["name"], record.obj["spec"].get("hard") or {}
            unsaid = _unsaid(kind, obj, hard)
            if unsaid:
                raise errors.forbidden(kind.plural, kind.group, name, f"failed quota: {quota}: must specify {unsaid}")
            exceeded = [
                (resource, wanted[resource], used, limit)
                for resource, limit in sorted(hard.items())
                if wanted.get(resource)
                and (used := self.used(kind, namespace, resource)) + wanted[resource] > quantity.parse(limit)
            ]
            if exceeded:
                told = [",".join(f"{entry[0]}={_text(entry[0], entry[at])}" for entry in exceeded) for at in (1, 2, 3)]
                why = f"exceeded quota: {quota}, requested: {told[0]}, used: {told[1]}, limited: {told[2]}"
                raise errors.forbidden(kind.plural, kind.group, name, why)

    def used(self, kind: Kind, namespace: str, resource: str) -> Decimal:
        """Return what the objects of a kind use of one resource. Pods that have ended count only as objects."""
        total = Decimal(0)
        for record in self._store.list(kind.storage_key, namespace):
            has_ended = _is_pod(kind) and (record.obj.get("status") or {}).get("phase") in _ENDED
            if not has_ended or resource.startswith("count/"):
                total += usage_of(kind, record.obj).get(resource, Decimal(0))
        return total

    def statuses(self, kind: Kind, obj: JsonObject) -> Iterable[tuple[JsonObject, JsonObject]]:
        """Yield (quota, its new status) for every quota that a write of `obj` changes."""
        namespace = obj["metadata"].get("namespace", "")
        for record in list(self._store.list(QUOTAS, namespace)):
            hard = record.obj["spec"].get("hard") or {}
            if (kind.group, kind.kind) != ("", "ResourceQuota") and not usage_of(kind, obj).keys() & hard.keys():
                continue
            used = {name: _text(name, self._used_of_namespace(namespace, name)) for name in hard}
            status = {"hard": dict(hard), "used": used}
            if (record.obj.get("status") or {}) != status:
                yield record.obj, status

    def _used_of_namespace(self, namespace: str, resource: str) -> Decimal:
        kind = self._kind_of(resource)
        return self.used(kind, namespace, resource) if kind is not None else Decimal(0)

    def _kind_of(self, resource: str) -> Kind | None:
        """Return the kind whose objects use a resource; None for a resource without users."""
        if resource == "requests.storage":
            return self._registry.find("", "v1", "persistentvolumeclaims")
        if resource.startswith(_AMOUNTS) or resource in _PLAIN_AMOUNTS:
            return self._registry.find("", "v1", "pods")
        plural, _, group = resource.removeprefix("count/").partition(".")
        found = [kind for kind in self._registry.kinds() if (kind.group, kind.plural) == (group, plural)]
        return found[0] if found else None


def usage_of(kind: Kind, obj: JsonObject) -> dict[str, Decimal]:
    """Return what an object uses, by the resource names of quotas."""
    suffix = f".{kind.group}" if kind.group else ""
    used = {f"count/{kind.plural}{suffix}": Decimal(1)}
    if not kind.group:
        used[kind.plural] = Decimal(1)
    if _is_pod(kind):
        used |= _pod_amounts(obj["spec"])
    if (kind.group, kind.kind) == ("", "PersistentVolumeClaim"):
        storage = ((obj["spec"].get("resources") or {}).get("requests") or {}).get("storage", "0")
        used["requests.storage"] = quantity.parse(storage)
    return used


def _pod_amounts(spec: JsonObject) -> dict[str, Decimal]:
    """Return the sum over the containers, or an init container's amount if it alone needs more."""
    total: dict[str, Decimal] = {}
    for container in spec.get("containers") or ():
        for name, amount in _container_amounts(container).items():
            total[name] = total.get(name, Decimal(0)) + amount
    for container in spec.get("initContainers") or ():
        for name, amount in _container_amounts(container).items():
            total[name] = max(total.get(name, Decimal(0)), amount)
    return total


def _container_amounts(container: JsonObject) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    amounts: dict[str, Decimal] = {}
    for side in ("requests", "limits"):
        for name, value in (resources.get(side) or {}).items():
            amounts[f"{side}.{name}"] = quantity.parse(value)
            if side == "requests" and name in _PLAIN_AMOUNTS:
                amounts[name] = quantity.parse(value)
    return amounts


def _unsaid(kind: Kind, obj: JsonObject, hard: JsonObject) -> str:
    """Return a text of the amounts that the quota requires, with the containers that do not set them."""
    if not _is_pod(kind):
        return ""
    spec = obj["spec"]
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    missing = {
        name: [str(c["name"]) for c in containers if name not in _container_amounts(c)]
        for name in sorted(_MUST_BE_GIVEN & hard.keys())
    }
    return "; ".join(f"{name} for: {','.join(who)}" for name, who in missing.items() if who)


def _is_pod(kind: Kind) -> bool:
    return (kind.group, kind.kind) == ("", "Pod")


def _text(resource: str, amount: Decimal | str) -> str:
    """Format an amount; bytes with a power of two as unit."""
    is_bytes = resource.endswith(("memory", "storage"))
    if is_bytes and isinstance(amount, Decimal) and amount >= _KIBI and amount % _KIBI == 0:
        return quantity.canonical(f"{int(amount) // _KIBI}Ki")
    return quantity.canonical(str(amount))
