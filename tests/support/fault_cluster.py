"""A small API server with Job and training controllers in memory, and operators that work against it and fail.

`Server` versions objects, refuses stale writes, keeps a log of changes for watches, and checks what no operator may
ever do: make a child while another makes the same artifact. `Operator` is the real Reconciler with a store that the log
fills, late if told so. `FaultyClient` breaks chosen calls: with an error, or with the end of the process, before the
server has the request or after it has carried it out.
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from support.builders import NOON, raw_spec

from wrpo_operator.api import names
from wrpo_operator.api.backends import BACKENDS, CHILD_KINDS
from wrpo_operator.render import RenderSettings
from wrpo_operator.runtime.cluster import Cluster
from wrpo_operator.runtime.errors import Details
from wrpo_operator.runtime.host import Host
from wrpo_operator.runtime.kube import KubeError, Page
from wrpo_operator.runtime.progress_server import ProgressStore
from wrpo_operator.runtime.queue import RetryAfterError
from wrpo_operator.runtime.reconciler import Reconciler, ReconcilerHost, ReconcilerSettings
from wrpo_operator.runtime.resources import (
    CHILD_RESOURCES,
    CLAIMS,
    EXPERIMENTS,
    PODS,
    SWEEPS,
    JsonObject,
    Resource,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from wrpo_operator.runtime.snapshot import SnapshotBuilder
from wrpo_operator.runtime.store import ObjectStore
from wrpo_operator.runtime.sweeps import SweepReconciler
from wrpo_operator.runtime.watching import selector_of

NAMESPACE = "ml"
TICK_S = 5.0
WATCHED = (SWEEPS, EXPERIMENTS, *CHILD_RESOURCES.values(), PODS)
Place = tuple[Resource, str, str]
FaultKind = Literal["error", "lost answer", "crash before", "crash after"]
ExitCodes = Callable[[JsonObject], int | None]
DONE = '{"outcome": "Succeeded", "rows": 7, "metrics": {"loss": 0.25}}'
BROKEN = '{"outcome": "Failed", "error": {"code": "Broken", "message": "It broke."}}'


class CrashError(BaseException):
    """The operator's process ends here; nothing of it may catch this."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at one call: the error, or the end of the process."""

    kind: FaultKind
    code: int = 500

    def error(self) -> KubeError:
        details = Details(retry_after_s=1 if self.code == 429 else None)
        return KubeError(self.code, "Injected", f"injected {self.code}", details=details)


class Server:
    """Objects, versions, the log of changes, and controllers that `step` moves."""

    def __init__(self) -> None:
        self.objects: dict[Place, JsonObject] = {}
        self.version = 0
        self.now: datetime = NOON
        self.changes: list[tuple[str, Resource, JsonObject]] = []
        self.made: Counter[str] = Counter()
        """Children by name, as often as they were created."""
        self.runs: Counter[str] = Counter()
        """Children whose pod ran, by artifact key."""
        self.writes = 0
        self._uids = 0
        self.exit_codes: ExitCodes = lambda _child: 0
        """Exit code of a child's pod; None while it runs on."""
        self.put(CLAIMS, {"metadata": {"name": "wrpo", "namespace": NAMESPACE}, "status": {"phase": "Bound"}})

    # Objects

    def add(self, name: str, **changes: Any) -> None:
        self.put(EXPERIMENTS, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": raw_spec(**changes)})

    def experiment(self, name: str) -> JsonObject:
        return self.objects[EXPERIMENTS, NAMESPACE, name]

    def status(self, name: str) -> JsonObject:
        found: JsonObject = self.experiment(name).get("status") or {}
        return found

    def children(self) -> list[tuple[Resource, JsonObject]]:
        return [(kind, obj) for (kind, _, _), obj in self.objects.items() if kind.kind in CHILD_RESOURCES]

    def edit(self, name: str, spec: JsonObject) -> None:
        obj = self.experiment(name)
        if obj["spec"] != spec:
            self.put(EXPERIMENTS, {**obj, "spec": spec})

    def put(self, resource: Resource, body: JsonObject) -> JsonObject:
        obj = copy.deepcopy(body)
        meta = obj["metadata"]
        place = (resource, namespace_of(obj), name_of(obj))
        known = self.objects.get(place)
        if known is None:
            self._uids += 1
            stamp = self.stamp()
            meta.update(uid=f"uid-{self._uids}", creationTimestamp=stamp, generation=1)
            if resource.kind in CHILD_RESOURCES:
                self._check_child(obj)
        else:
            if {**known, "metadata": None} == {**obj, "metadata": None} and _settled(known) == _settled(obj):
                return copy.deepcopy(known)
            changed = known.get("spec") != obj.get("spec")
            meta.update(uid=uid_of(known), generation=known["metadata"]["generation"] + changed)
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind
        self.objects[place] = obj
        self.changes.append(("MODIFIED" if known else "ADDED", resource, copy.deepcopy(obj)))
        return copy.deepcopy(obj)

    def _check_child(self, child: JsonObject) -> None:
        self.made[name_of(child)] += 1
        key = labels_of(child)[names.LABEL_ARTIFACT_KEY]
        rivals = [
            name_of(other)
            for _, other in self.children()
            if labels_of(other)[names.LABEL_ARTIFACT_KEY] == key and not ended(other) and not is_suspended(other)
        ]
        assert not rivals, f"{name_of(child)} is made while {rivals} makes the same artifact"

    def remove(self, place: Place) -> JsonObject:
        obj = self.objects.pop(place)
        self.version += 1
        gone = copy.deepcopy(obj)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self.changes.append(("DELETED", place[0], gone))
        for other, dependent in list(self.objects.items()):
            if any(owner.get("uid") == uid_of(obj) for owner in dependent["metadata"].get("ownerReferences") or ()):
                self.remove(other)
        return obj

    def elapsed_s(self) -> float:
        return (self.now - NOON).total_seconds()

    def stamp(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    # Controllers

    def step(self, *, seconds: float = TICK_S) -> None:
        """Let time pass and every child take one step: a pod that runs, then its end."""
        self.now += timedelta(seconds=seconds)
        for resource, child in self.children():
            self.advance(resource, child)

    def advance(self, resource: Resource, child: JsonObject) -> None:
        if ended(child) or is_suspended(child):
            return
        place = (PODS, NAMESPACE, f"{name_of(child)}-0")
        pod = self.objects.get(place)
        if pod is None:
            self.runs[labels_of(child)[names.LABEL_ARTIFACT_KEY]] += 1
            self.put(PODS, self._pod(child))
            return
        code = self.exit_codes(child)
        if code is None:
            return
        started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
        state = {
            "exitCode": code,
            "startedAt": started,
            "finishedAt": self.stamp(),
            "message": BROKEN if code else DONE,
        }
        status = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{"name": CHILD_KINDS[resource.kind].container, "state": {"terminated": state}}],
        }
        self.put(PODS, {**pod, "status": status})
        kind = CHILD_KINDS[resource.kind].failed if code else CHILD_KINDS[resource.kind].succeeded
        entry = {"type": kind, "status": "True", "lastTransitionTime": self.stamp()}
        succeeded = {} if code else {"succeeded": 1, "completionTime": self.stamp()}
        self.put(resource, {**child, "status": {"conditions": [entry], **succeeded}})

    def _pod(self, child: JsonObject) -> JsonObject:
        owner = {"kind": child["kind"], "name": name_of(child), "uid": uid_of(child), "controller": True}
        running = {
            "name": CHILD_KINDS[child["kind"]].container,
            "state": {"running": {"startedAt": self.stamp()}},
        }
        return {
            "metadata": {
                "name": f"{name_of(child)}-0",
                "namespace": NAMESPACE,
                "labels": labels_of(child),
                "ownerReferences": [owner],
            },
            "spec": {"nodeName": "node"},
            "status": {"phase": "Running", "containerStatuses": [running]},
        }


def ended(child: JsonObject) -> bool:
    return bool((child.get("status") or {}).get("conditions"))


def is_suspended(child: JsonObject) -> bool:
    return CHILD_KINDS[child["kind"]].is_suspended(child["spec"])


def _settled(obj: JsonObject) -> JsonObject:
    changing = {"resourceVersion", "uid", "generation", "creationTimestamp"}
    return {key: value for key, value in obj["metadata"].items() if key not in changing}


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


class FaultyClient:
    """KubeClient of one operator. `faults` maps the number of a call, counted from 0, to what happens there."""

    def __init__(self, server: Server, faults: Mapping[int, Fault], *, calls: list[tuple[str, str]]) -> None:
        self._server = server
        self.faults = faults
        self.calls = calls
        """(verb, plural) of every call so far; operators started anew go on counting."""
        self._is_dead = False
        self.during: Callable[[int], Awaitable[None]] | None = None
        """Awaited between what the server does and its answer; gets the number of the call."""

    async def _call(self, verb: str, resource: Resource, action: Callable[[], Any]) -> Any:
        if self._is_dead:
            raise CrashError
        number = len(self.calls)
        fault = self.faults.get(number)
        self.calls.append((verb, resource.plural))
        if fault is not None and fault.kind == "crash before":
            self._is_dead = True
            raise CrashError
        if fault is not None and fault.kind == "error":
            raise fault.error()
        await asyncio.sleep(0)
        try:
            answer = action()
        finally:
            if self.during is not None:
                await self.during(number)
        if fault is not None and fault.kind == "crash after":
            self._is_dead = True
            raise CrashError
        if fault is not None:
            raise KubeError(0, "Unreachable", "timed out")
        return answer

    def _found(self, resource: Resource, name: str, namespace: str | None) -> JsonObject:
        found = self._server.objects.get((resource, namespace or "", name))
        if found is None:
            raise KubeError(404, "NotFound", f"{resource.plural} {name} not found")
        return found

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        found: JsonObject = await self._call(
            "get", resource, lambda: copy.deepcopy(self._found(resource, name, namespace))
        )
        return found

    async def pages(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[Page]:
        """Yield everything as one page."""
        del label_selector, field_selector

        def action() -> Page:
            kept = [
                copy.deepcopy(obj)
                for (kind, where, _), obj in self._server.objects.items()
                if kind == resource and namespace in {None, where}
            ]
            return Page(kept, str(self._server.version))

        yield await self._call("list", resource, action)

    async def create(self, resource: Resource, body: JsonObject) -> JsonObject:
        def action() -> JsonObject:
            if (resource, namespace_of(body), name_of(body)) in self._server.objects:
                raise KubeError(409, "AlreadyExists", f"{name_of(body)} exists")
            return self._written(resource, body)

        created: JsonObject = await self._call("create", resource, action)
        return created

    async def replace(self, resource: Resource, body: JsonObject) -> JsonObject:
        def action() -> JsonObject:
            self._refuse_stale(self._found(resource, name_of(body), namespace_of(body)), body["metadata"])
            return self._written(resource, body)

        replaced: JsonObject = await self._call("replace", resource, action)
        return replaced

    async def apply(self, resource: Resource, body: JsonObject) -> JsonObject:
        def action() -> JsonObject:
            known = self._server.objects.get((resource, namespace_of(body), name_of(body)), {})
            return self._written(resource, _merged(known, body))

        applied: JsonObject = await self._call("apply", resource, action)
        return applied

    async def merge_patch(
        self, resource: Resource, name: str, namespace: str | None, patch: JsonObject, *, subresource: str = ""
    ) -> JsonObject:
        def action() -> JsonObject:
            known = self._found(resource, name, namespace)
            self._refuse_stale(known, patch.get("metadata") or {})
            return self._written(resource, _merged(known, patch))

        verb = f"patch/{subresource}" if subresource else "patch"
        patched: JsonObject = await self._call(verb, resource, action)
        return patched

    async def delete(
        self, resource: Resource, name: str, namespace: str | None, *, uid: str | None = None, propagation: str = ""
    ) -> JsonObject:
        del propagation

        def action() -> JsonObject:
            found = self._found(resource, name, namespace)
            if uid and uid_of(found) != uid:
                raise KubeError(409, "Conflict", "uid differs")
            self._server.writes += 1
            self._server.remove((resource, namespace or "", name))
            return {"kind": "Status", "status": "Success"}

        deleted: JsonObject = await self._call("delete", resource, action)
        return deleted

    async def served(self, resource: Resource) -> bool:
        return bool(await self._call("served", resource, lambda: True))

    def _written(self, resource: Resource, body: JsonObject) -> JsonObject:
        self._server.writes += 1
        return self._server.put(resource, body)

    @staticmethod
    def _refuse_stale(known: JsonObject, metadata: JsonObject) -> None:
        if (
            metadata.get("resourceVersion", known["metadata"]["resourceVersion"])
            != known["metadata"]["resourceVersion"]
        ):
            raise KubeError(409, "Conflict", "the object has been modified")


@dataclass
class Operator:
    """One process: the real Reconciler, and a store that is filled by a first list and by the server's log."""

    server: Server
    client: FaultyClient
    identity: str = "op-1"
    may_act: Callable[[], bool] = lambda: True
    skew: timedelta = timedelta(0)
    """How far this machine's clock is ahead of the server's."""
    store: ObjectStore = field(default_factory=ObjectStore, init=False)
    seen: int = field(default=-1, init=False)
    """How much of the log has arrived; -1: nothing was listed yet."""

    def __post_init__(self) -> None:
        snapshots = SnapshotBuilder(self.store, ProgressStore(), backends=lambda: frozenset(BACKENDS))
        cluster = Cluster(
            client=self.client,
            store=self.store,
            now=lambda: self.server.now + self.skew,
            monotonic=self.server.elapsed_s,
        )
        settings = ReconcilerSettings(RenderSettings(), self.identity, manage_service_account=True)
        self._reconciler = Reconciler(cluster, snapshots, settings, ReconcilerHost(may_act=self.may_act))
        self._sweeps = SweepReconciler(cluster, Host(may_act=self.may_act), identity=self.identity)

    async def relist(self) -> None:
        """List everything, as at the start and after a lost watch."""
        at = len(self.server.changes)
        for resource in WATCHED:
            async for page in self.client.pages(resource, NAMESPACE, label_selector=selector_of(resource)):
                for item in page.items:
                    self.store.upsert(resource, item)
                listed = {(namespace_of(item), name_of(item)) for item in page.items}
                self.store.retain(resource, listed, page.version)
        self.seen = max(self.seen, at)

    def receive(self, *, lag: int = 0) -> None:
        """Take what the watches deliver; the last `lag` changes are still under way."""
        until = max(self.seen, len(self.server.changes) - lag)
        for kind, resource, obj in self.server.changes[self.seen : until]:
            self.deliver(kind, resource, obj)
        self.seen = until

    def deliver(self, kind: str, resource: Resource, obj: JsonObject) -> None:
        if resource not in WATCHED:
            return
        if kind == "DELETED":
            self.store.delete(resource, obj)
        else:
            self.store.upsert(resource, copy.deepcopy(obj))

    async def look(self, *, lag: int = 0) -> None:
        """Reconcile every sweep and every experiment once; what fails is left to the next time."""
        try:
            if self.seen < 0:
                await self.relist()
            self.receive(lag=lag)
            for work, resource in ((self._sweeps, SWEEPS), (self._reconciler, EXPERIMENTS)):
                for name in [name_of(obj) for obj in self.store.items(resource)]:
                    await self._reconcile(work, name)
        except KubeError:
            return

    async def _reconcile(self, work: SweepReconciler | Reconciler, name: str) -> None:
        try:
            await work.reconcile((NAMESPACE, name))
        except RetryAfterError:
            return


def steps_of(status: JsonObject) -> Iterator[tuple[str, ...]]:
    """Yield what a status says of its stages and conditions, without times."""
    for stage in status.get("stages") or ():
        attempts = [(entry["number"], entry["state"], entry.get("exitCode")) for entry in stage["attempts"]]
        told = (stage["state"], stage["hash"], stage.get("failedAttempts"), stage.get("metrics"), stage.get("artifact"))
        yield str(stage["name"]), str(told), str(attempts)
    for entry in status.get("conditions") or ():
        yield entry["type"], entry["status"], entry["reason"]


def outcome(server: Server, name: str) -> JsonObject:
    """Return all that must not depend on what went wrong on the way."""
    status = server.status(name)
    return {
        "phase": status.get("phase"),
        "steps": sorted(steps_of(status)),
        "children": sorted(name_of(child) for _, child in server.children()),
        "made": dict(server.made),
        "runs": dict(server.runs),
    }


async def drive(
    server: Server,
    faults: Mapping[int, Fault],
    *,
    finished: Callable[[], bool],
    lag: Callable[[int], int] = lambda _round: 0,
    skew: timedelta = timedelta(0),
    during: Callable[[int], Awaitable[None]] | None = None,
    rounds: int = 120,
) -> FaultyClient:
    """Let an operator work until `finished`, starting a new one with an empty store whenever it has crashed."""
    calls: list[tuple[str, str]] = []

    def start() -> Operator:
        client = FaultyClient(server, faults, calls=calls)
        client.during = during
        return Operator(server, client, skew=skew)

    operator = start()
    for number in range(rounds):
        try:
            # Several looks at one moment, as the events of one moment give several.
            for _ in range(2):
                await operator.look(lag=lag(number))
        except CrashError:
            operator = start()
            continue
        if finished():
            operator.receive()
            await operator.look()
            return operator.client
        server.step()
    raise AssertionError(f"not finished after {rounds} rounds")
