"""A KubeClient in memory, with resourceVersions, conflicts and injected errors."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from wrpo_operator.runtime.kube import KubeError, Page
from wrpo_operator.runtime.resources import Resource, labels_of, name_of, namespace_of

JsonObject = dict[str, Any]


def merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class FakeKube:
    def __init__(self) -> None:
        self.objects: dict[tuple[Resource, str, str], JsonObject] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.fail: dict[tuple[str, str], KubeError] = {}
        self.cut: dict[str, int] = {}
        """Plural -> parts of a list that could not be read."""
        self.reviews: list[JsonObject] = []
        self.review_answer: JsonObject = {"authenticated": False}
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    def _call(self, verb: str, resource: Resource, name: str) -> None:
        self.calls.append((verb, resource.plural, name))
        error = self.fail.get((verb, resource.plural))
        if error is not None:
            raise error

    def writes(self) -> list[tuple[str, str, str]]:
        return [call for call in self.calls if call[0] not in {"get", "list"}]

    def put(self, resource: Resource, body: JsonObject) -> JsonObject:
        obj = copy.deepcopy(body)
        meta = obj.setdefault("metadata", {})
        meta.setdefault("namespace", "default")
        meta.setdefault("uid", f"uid-{next(self._uids)}")
        meta["resourceVersion"] = str(next(self._versions))
        obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind
        self.objects[resource, namespace_of(obj), name_of(obj)] = obj
        return copy.deepcopy(obj)

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> JsonObject:
        self._call("get", resource, name)
        found = copy.deepcopy(self._found(resource, name, namespace))
        await asyncio.sleep(0)  # others may write between this read and a write that builds on it
        return found

    def _found(self, resource: Resource, name: str, namespace: str | None) -> JsonObject:
        found = self.objects.get((resource, namespace or "", name))
        if found is None:
            raise KubeError(404, "NotFound", f"{resource.plural} {name} not found")
        return found

    async def pages(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[Page]:
        self._call("list", resource, "")
        wanted = dict(part.split("=") for part in label_selector.split(",") if part)
        items = [
            copy.deepcopy(obj)
            for (kind, where, _), obj in self.objects.items()
            if kind == resource
            and namespace in {None, where}
            and all(labels_of(obj).get(key) == value for key, value in wanted.items())
        ]
        version, half = str(next(self._versions)), len(items) // 2
        if half:
            yield Page(items[:half], version, more="the rest")
        yield Page(items[half:], version, num_cut=self.cut.get(resource.plural, 0))

    async def create(self, resource: Resource, body: JsonObject) -> JsonObject:
        self._call("create", resource, name_of(body))
        if resource.plural == "tokenreviews":
            self.reviews.append(body)
            return {**body, "status": self.review_answer}
        if (resource, namespace_of(body), name_of(body)) in self.objects:
            raise KubeError(409, "AlreadyExists", f"{name_of(body)} exists")
        return self.put(resource, body)

    async def replace(self, resource: Resource, body: JsonObject) -> JsonObject:
        self._call("replace", resource, name_of(body))
        known = self._found(resource, name_of(body), namespace_of(body))
        if known["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise KubeError(409, "Conflict", "the object has been modified")
        return self.put(resource, body)

    async def apply(self, resource: Resource, body: JsonObject) -> JsonObject:
        self._call("apply", resource, name_of(body))
        known = self.objects.get((resource, namespace_of(body), name_of(body)), {})
        return self.put(resource, merged(known, body))

    async def merge_patch(
        self, resource: Resource, name: str, namespace: str | None, patch: JsonObject, *, subresource: str = ""
    ) -> JsonObject:
        self._call(f"patch{'/' + subresource if subresource else ''}", resource, name)
        return self.put(resource, merged(self._found(resource, name, namespace), patch))

    async def delete(
        self, resource: Resource, name: str, namespace: str | None, *, uid: str | None = None, propagation: str = ""
    ) -> JsonObject:
        self._call("delete", resource, name)
        found = self._found(resource, name, namespace)
        if uid and found["metadata"]["uid"] != uid:
            raise KubeError(409, "Conflict", "uid differs")
        del self.objects[resource, namespace or "", name]
        return {"kind": "Status", "status": "Success"}

    async def served(self, resource: Resource) -> bool:
        self._call("served", resource, "")
        return True


class Clock:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def kube() -> FakeKube:
    return FakeKube()


@pytest.fixture
def clock() -> Clock:
    return Clock()
