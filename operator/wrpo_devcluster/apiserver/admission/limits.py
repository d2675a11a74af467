"""LimitRange admission: default requests of containers, and bounds of what an object may request."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from wrpo_devcluster import quantity
from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.client import JsonObject

LIMIT_RANGES = "/limitranges"
Amounts = dict[str, Decimal]
_POD, _CLAIM = ("", "Pod"), ("", "PersistentVolumeClaim")


class LimitRanges:
    """LimitRanges of every namespace."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _limits(self, namespace: str) -> Iterator[JsonObject]:
        for record in self._store.list(LIMIT_RANGES, namespace):
            yield from record.obj["spec"].get("limits") or ()

    def set_defaults(self, pod: JsonObject) -> None:
        """Set the defaults of a new pod's containers, in place."""
        for limit in self._limits(pod["metadata"]["namespace"]):
            if limit.get("type") == "Container":
                for container in _containers(pod["spec"]):
                    resources = container.setdefault("resources", {})
                    for source, target in (("default", "limits"), ("defaultRequest", "requests")):
                        if limit.get(source):
                            resources[target] = {**limit[source], **(resources.get(target) or {})}

    def check(self, kind: Kind, obj: JsonObject, old: JsonObject | None) -> None:
        """Refuse a new pod or claim that requests too little or too much, or has limits too far above its requests."""
        if (kind.group, kind.kind) not in {_POD, _CLAIM} or ((kind.group, kind.kind) == _POD and old is not None):
            return
        found = [
            violation
            for limit in self._limits(obj["metadata"]["namespace"])
            for requests, limits in _subjects_of(kind, limit, obj["spec"])
            for violation in _violations(limit, requests, limits)
        ]
        if found:
            why = found[0] if len(found) == 1 else f"[{', '.join(found)}]"
            raise errors.forbidden(kind.plural, kind.group, obj["metadata"].get("name", ""), why)


def _containers(spec: JsonObject) -> list[JsonObject]:
    return [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]


def _amounts(holder: JsonObject, side: str) -> Amounts:
    given = (holder.get("resources") or {}).get(side) or {}
    return {name: quantity.parse(value) for name, value in given.items()}


def _subjects_of(kind: Kind, limit: JsonObject, spec: JsonObject) -> list[tuple[Amounts, Amounts | None]]:
    """Return requests and limits of each item that a limit covers. Claims have no limits."""
    if kind.kind == "PersistentVolumeClaim":
        return [(_amounts(spec, "requests"), None)] if limit.get("type") == "PersistentVolumeClaim" else []
    if limit.get("type") == "Container":
        return [(_amounts(one, "requests"), _amounts(one, "limits")) for one in _containers(spec)]
    return [(_sum(spec, "requests"), _sum(spec, "limits"))] if limit.get("type") == "Pod" else []


def _sum(spec: JsonObject, side: str) -> Amounts:
    """Return the sum over the containers, or an init container's amount if it alone needs more."""
    total: Amounts = {}
    for container in spec.get("containers") or ():
        for name, value in _amounts(container, side).items():
            total[name] = total.get(name, Decimal(0)) + value
    for container in spec.get("initContainers") or ():
        for name, value in _amounts(container, side).items():
            total[name] = max(total.get(name, Decimal(0)), value)
    return total


def _violations(limit: JsonObject, requests: Amounts, limits: Amounts | None) -> list[str]:
    found = [_below(limit, name, bound, requests, limits or {}) for name, bound in _sorted(limit, "min")]
    for name, bound in _sorted(limit, "max"):
        shown = f"maximum {name} usage per {limit['type']} is {bound}"
        most = quantity.parse(bound)
        if limits is None:
            found.append(_above(shown, most, request=requests.get(name), needed="request"))
        else:
            found.append(_above(shown, most, limit=limits.get(name), request=requests.get(name), needed="limit"))
    found += [
        _ratio(limit, name, bound, requests, limits or {}) for name, bound in _sorted(limit, "maxLimitRequestRatio")
    ]
    return [violation for violation in found if violation]


def _sorted(limit: JsonObject, constraint: str) -> list[tuple[str, str]]:
    return sorted((limit.get(constraint) or {}).items())


def _below(limit: JsonObject, name: str, bound: str, requests: Amounts, limits: Amounts) -> str:
    shown, least = f"minimum {name} usage per {limit['type']} is {bound}", quantity.parse(bound)
    if name not in requests:
        return f"{shown}.  No request is specified"
    if requests[name] < least:
        return f"{shown}, but request is {_text(requests[name])}"
    return f"{shown}, but limit is {_text(limits[name])}" if name in limits and limits[name] < least else ""


def _above(
    shown: str, most: Decimal, *, needed: str, limit: Decimal | None = None, request: Decimal | None = None
) -> str:
    if (limit if needed == "limit" else request) is None:
        return f"{shown}.  No {needed} is specified"
    if limit is not None and limit > most:
        return f"{shown}, but limit is {_text(limit)}"
    return f"{shown}, but request is {_text(request)}" if request is not None and request > most else ""


def _ratio(limit: JsonObject, name: str, bound: str, requests: Amounts, limits: Amounts) -> str:
    shown = f"{name} max limit to request ratio per {limit['type']} is {bound}, but"
    if not requests.get(name):
        return f"{shown} no request is specified or request is 0"
    if not limits.get(name):
        return f"{shown} no limit is specified or limit is 0"
    ratio = limits[name] / requests[name]
    return f"{shown} provided ratio is {float(ratio):f}" if ratio > quantity.parse(bound) else ""


def _text(value: Decimal) -> str:
    return quantity.canonical(str(value))
