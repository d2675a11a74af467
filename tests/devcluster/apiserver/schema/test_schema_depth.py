"""Nesting as deep as a real server stores it: every request handles it, and deeper objects are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from devcluster.api_rig import CRDS, Rig

from wrpo_devcluster.apiserver.schema.serializer import Findings, find_duplicates, parse_json
from wrpo_devcluster.apiserver.schema.typed import same
from wrpo_devcluster.stack import MAX_DEPTH, call_with_deep_stack

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
NAME = "things.deep.example"
CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": NAME},
    "spec": {
        "group": "deep.example",
        "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                                    "size": {"type": "integer", "default": 3},
                                },
                            },
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}
PATH = "/apis/deep.example/v1/namespaces/ns/things"
AROUND = 3
"""Levels around what `nested` returns: the object, its spec, and `free`."""
DEEPEST = MAX_DEPTH - AROUND - 3
"""Levels of an object that can also be sent in a patch and in a list."""
SHAPES = {
    "objects": ('{"a":', "}"),
    "lists": ("[", "]"),
    "objects and lists": ('{"a":[', "]}"),
    "siblings": ('{"b":[{}],"a":', "}"),
}


def nested(depth: int, shape: str = "objects", leaf: str = "1") -> str:
    """Return JSON of `depth` levels."""
    opening, closing = SHAPES[shape]
    times = depth // (opening.count("{") + opening.count("[") if shape == "objects and lists" else 1)
    return opening * times + leaf + closing * times


def thing(name: str, free: str, field: str = "spec") -> bytes:
    head = f'"apiVersion":"deep.example/v1","kind":"Thing","metadata":{{"name":"{name}"}}'
    return f'{{{head},"{field}":{{"free":{{"x":{free}}}}}}}'.encode()


def deep(run: Run, scenario: Callable[[Rig], Awaitable[None]]) -> None:
    """Run a scenario with the stack that the program `wrpo_devcluster serve` has."""

    async def with_crd(rig: Rig) -> None:
        if rig.server.store.get("apiextensions.k8s.io/customresourcedefinitions", "", NAME) is None:
            await rig.client.create(CRDS, CRD)
        await scenario(rig)

    call_with_deep_stack(lambda: run(with_crd))


async def free_of(rig: Rig, name: str) -> str:
    status, found = await rig.request("GET", f"{PATH}/{name}")
    assert status == 200
    return json.dumps(found["spec"]["free"]["x"], separators=(",", ":"))


async def watched(rig: Rig, count: int) -> list[dict[str, Any]]:
    """Return the first events of a watch."""
    headers = {"Authorization": "Bearer admin"}
    async with rig.http.get(f"{PATH}?watch=true&timeoutSeconds=30", headers=headers) as response:
        buffer, events = b"", []
        async for chunk in response.content.iter_any():
            *lines, buffer = (buffer + chunk).split(b"\n")
            events += [json.loads(line) for line in lines]
            if len(events) >= count:
                break
    return events


@pytest.mark.parametrize(
    ("depth", "shape"),
    [
        *((1_500, shape) for shape in SHAPES),
        (DEEPEST, "objects and lists"),
        *(pytest.param(DEEPEST, shape, marks=pytest.mark.slow) for shape in ("objects", "siblings", "lists")),
    ],
)
def test_a_deep_object_is_created_read_listed_watched_changed_and_deleted(run: Run, depth: int, shape: str) -> None:
    free, other = nested(depth, shape), nested(depth, shape, leaf="2")

    async def scenario(rig: Rig) -> None:
        apply, manager = "application/apply-patch+yaml", "fieldManager=me"
        assert (await rig.request("POST", f"{PATH}?dryRun=All&fieldValidation=Strict", thing("one", free)))[0] == 201
        assert (await rig.request("POST", PATH, thing("one", free)))[0] == 201
        assert await free_of(rig, "one") == free
        status, listed = await rig.request("GET", PATH)
        assert (status, [item["metadata"]["name"] for item in listed["items"]]) == (200, ["one"])
        (event,) = await watched(rig, 1)
        assert (event["type"], event["object"]["spec"]["size"]) == ("ADDED", 3)

        status, found = await rig.request("GET", f"{PATH}/one")
        del found["metadata"]["managedFields"]
        found["spec"]["size"] = 4
        assert (await rig.request("PUT", f"{PATH}/one", found))[0] == 200
        merge = {"content": "application/merge-patch+json"}
        assert (await rig.request("PATCH", f"{PATH}/one", thing("one", other), **merge))[0] == 200
        assert await free_of(rig, "one") == other
        status, _ = await rig.request("PATCH", f"{PATH}/one/status", thing("one", free, field="status"), **merge)
        assert status == 200
        operations = f'[{{"op":"replace","path":"/spec/free/x","value":{free}}}]'.encode()
        status, _ = await rig.request("PATCH", f"{PATH}/one", operations, content="application/json-patch+json")
        assert status == 200
        assert await free_of(rig, "one") == free
        assert (await rig.request("DELETE", f"{PATH}/one"))[0] == 200

        assert (await rig.request("PATCH", f"{PATH}/two?{manager}", thing("two", free), content=apply))[0] == 201
        status, _ = await rig.request("PATCH", f"{PATH}/two?fieldManager=other", thing("two", other), content=apply)
        assert status == 409
        assert (await rig.request("PATCH", f"{PATH}/two?{manager}", thing("two", other), content=apply))[0] == 200
        assert await free_of(rig, "two") == other
        assert (await rig.request("PATCH", f"{PATH}/two?{manager}", thing("two", "1"), content=apply))[0] == 200
        assert await free_of(rig, "two") == "1"

    deep(run, scenario)


def test_a_restarted_server_reads_what_it_stored(run: Run) -> None:
    free = nested(DEEPEST)

    async def store(rig: Rig) -> None:
        assert (await rig.request("POST", PATH, thing("one", free)))[0] == 201

    async def read(rig: Rig) -> None:
        assert await free_of(rig, "one") == free
        assert [event["type"] for event in await watched(rig, 1)] == ["ADDED"]

    deep(run, store)
    deep(run, read)


def test_deeper_than_a_real_server_reads_is_a_bad_request_on_every_way_in(run: Run) -> None:
    limit = MAX_DEPTH - AROUND

    async def scenario(rig: Rig) -> None:
        assert (await rig.request("POST", f"{PATH}?dryRun=All", thing("one", nested(limit))))[0] == 201
        assert (await rig.request("POST", PATH, thing("one", "1")))[0] == 201
        for free in (nested(limit + 1), nested(limit + 1, "lists"), nested(200_000), nested(200_000, "lists")):
            for method, path, content in (
                ("POST", PATH, "application/json"),
                ("PUT", f"{PATH}/one", "application/json"),
                ("PATCH", f"{PATH}/one", "application/merge-patch+json"),
                ("PATCH", f"{PATH}/one?fieldManager=me", "application/apply-patch+yaml"),
            ):
                status, told = await rig.request(method, path, thing("one", free), content=content)
                assert (status, told["reason"]) == (400, "BadRequest")
                assert "exceeded max depth" in told["message"]
        assert await free_of(rig, "one") == "1"

    deep(run, scenario)


def test_patches_cannot_pile_up_more_levels_than_a_body_may_have(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        assert (await rig.request("POST", PATH, thing("one", nested(6_000))))[0] == 201
        way = "/spec/free/x" + "/a" * 6_000
        operation = f'[{{"op":"replace","path":"{way}","value":{nested(6_000)}}}]'.encode()
        status, told = await rig.request("PATCH", f"{PATH}/one", operation, content="application/json-patch+json")
        assert (status, told["message"]) == (400, "the object would nest too deep: exceeded max depth")
        assert await free_of(rig, "one") == nested(6_000)

    deep(run, scenario)


@pytest.mark.parametrize("content", ["application/json", "application/yaml"])
def test_a_server_with_a_shallow_stack_refuses_what_it_cannot_follow(run: Run, content: str) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.create(CRDS, CRD)
        for depth in (300, 600, 900, 1_500, 9_000):
            status, told = await rig.request("POST", PATH, thing(f"t{depth}", nested(depth)), content=content)
            assert status in {201, 400}
            assert status == 201 or "exceeded max depth" in told["message"]
        status, _ = await rig.request("GET", PATH)
        assert status == 200

    assert sys.getrecursionlimit() < 5_000
    run(scenario)


def test_a_duplicate_key_is_named_by_its_path_and_costs_no_memory_for_the_others() -> None:
    long = "k" * 140
    found = Findings()
    text = f'{{"{long}":' * 9_000 + "1" + "}" * 9_000
    call_with_deep_stack(lambda: find_duplicates(parse_json(text.encode()), found))
    assert found.duplicates == []
    find_duplicates(parse_json(b'{"a":[{"b":1},{"b":{"c":1,"c":2},"b":{"d":1,"d":2}}],"e":1,"e":{"f":1,"f":1}}'), found)
    assert found.duplicates == ["e", "a[1].b", "a[1].b.d", "e.f"]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("[1,{}]", "[1,{}]", True),
        ('{"a":[1]}', '{"a":[true]}', False),
        ('{"a":{"b":0}}', '{"a":{"b":false}}', False),
        ("[1]", "[1.0]", True),
        ("[]", "{}", False),
        ("true", "1", False),
        ("[true]", "[true]", True),
    ],
)
def test_equality_tells_booleans_from_numbers_at_any_depth(one: str, other: str, is_same: bool) -> None:
    def deep() -> bool:
        return same(json.loads(nested(9_000, leaf=one)), json.loads(nested(9_000, leaf=other)))

    assert same(json.loads(one), json.loads(other)) is is_same
    assert call_with_deep_stack(deep) is is_same


def test_a_call_with_a_deep_stack_raises_what_was_raised_and_leaves_the_limit_as_it_was() -> None:
    def fail() -> None:
        raise KeyError(sys.getrecursionlimit())

    before = sys.getrecursionlimit()
    with pytest.raises(KeyError, match=r"81000"):
        call_with_deep_stack(fail)
    assert sys.getrecursionlimit() == before
