"""Whatever JSON a server can store is decoded, at a bounded depth."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from wrpo_operator.api.depth import MAX_DEPTH as SPEC_DEPTH
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.runtime.decode import MAX_DEPTH, UndecodableError, cut_depth, decode, encode, objects_in
from wrpo_operator.runtime.tolerant import GONE, TolerantResponse, watch_line


def nested(depth: int, kind: str = "object") -> bytes:
    opening, closing = (b'{"a":', b"}") if kind == "object" else (b"[", b"]")
    return opening * depth + b"1" + closing * depth


def depth_of(value: Any) -> int:
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth


@pytest.mark.parametrize("kind", ["object", "list"])
@pytest.mark.parametrize("depth", [1, MAX_DEPTH, 200, 201, 900, 1_500, 10_000, 200_000])
def test_any_depth_is_decoded_and_what_is_kept_is_bounded(depth: int, kind: str) -> None:
    items = b'{"items":[' + nested(depth, kind) + b',{"metadata":{"name":"healthy"}}]}'
    value = decode(items)
    assert value["items"][1] == {"metadata": {"name": "healthy"}}
    assert depth_of(value) == (MAX_DEPTH if depth > 198 else max(depth + 2, 4))


def test_what_is_cut_by_the_decoder_is_too_deep_for_a_spec_as_well() -> None:
    obj = json.loads(nested(MAX_DEPTH - 4))
    with pytest.raises(
        SpecError, match=r"spec\.a\.a\.a nests deeper than 64 levels, which no field needs\. Remove it\."
    ):
        parse_spec(obj)
    assert SPEC_DEPTH < MAX_DEPTH - 4


STRANGE = {
    "a bracket in a string": (b'{"a":"[[[{"}', {"a": "[[[{"}),
    "an escaped quote": (rb'{"a":"\"[","b":[]}', {"a": '"[', "b": []}),
    "half of a surrogate pair": (rb'{"a":"\ud83e"}', {"a": "?"}),
    "a whole one": (rb'{"a":"\ud83e\udd99"}', {"a": "\U0001f999"}),
    "minus zero": (b"[-0]", [0]),
    "a number beyond all floats": (b"[1e400]", [float("inf")]),
    "an integer of 5,000 digits": (b"[" + b"9" * 5000 + b"]", [float("inf")]),
    "an integer of 300 digits": (b"[" + b"9" * 300 + b"]", [int("9" * 300)]),
    "a key that is empty": (b'{"":{"__proto__":null}}', {"": {"__proto__": None}}),
    "null": (b"null", None),
}


@pytest.mark.parametrize(("data", "expected"), STRANGE.values(), ids=STRANGE.keys())
def test_strange_values_are_decoded(data: bytes, expected: object) -> None:
    assert decode(data) == expected


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":}', b'"a', b"]" * 9, b"<html>"])
def test_what_is_no_json_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(UndecodableError, match="not JSON: "):
        decode(data)
    assert watch_line(data) == b""


def random_value(rand: random.Random, depth: int) -> Any:
    leaves: list[Any] = [None, True, -0.0, 1e308, 10**30, "", "\U0001f999", '"\\{[', "\x00\u2028", "a" * 50]
    if depth == 0 or rand.random() < 0.2:
        return rand.choice(leaves)
    if rand.random() < 0.5:
        return [random_value(rand, depth - 1) for _ in range(rand.randrange(4))]
    return {rand.choice(["", "a", "]}", '"', "\U0001f999", "$patch"]): random_value(rand, depth - 1) for _ in range(3)}


@pytest.mark.parametrize("seed", range(60))
def test_cutting_agrees_with_cutting_the_decoded_value(seed: int) -> None:
    rand = random.Random(seed)
    value, limit = random_value(rand, 7), rand.randrange(1, 6)

    def cut(part: Any, depth: int) -> Any:
        if isinstance(part, dict | list) and depth == limit:
            return None
        if isinstance(part, dict):
            return {key: cut(inner, depth + 1) for key, inner in part.items()}
        return [cut(inner, depth + 1) for inner in part] if isinstance(part, list) else part

    for text in (json.dumps(value).encode(), encode(value), json.dumps(value, indent=1).encode()):
        assert json.loads(cut_depth(text, limit)) == cut(value, 0)
        assert decode(text) == value


def test_a_watch_event_stays_as_it_is_unless_it_is_too_deep() -> None:
    plain = b'{"type":"ADDED","object":{"metadata":{"name":"a"}}}'
    assert watch_line(plain) == plain
    deep = b'{"type":"ADDED","object":{"metadata":{"name":"a"},"spec":' + nested(1_500) + b"}}"
    line = watch_line(deep)
    assert json.loads(line)["object"]["metadata"] == {"name": "a"}


def test_an_error_within_a_watch_becomes_one_that_begins_the_watch_again() -> None:
    for code in (403, 410, 500):
        error = {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "etcdserver: no leader"}}
        assert watch_line(json.dumps(error, separators=(",", ":")).encode()) == GONE


NO_EVENTS = (
    b"[]",
    b"1",
    b'{"type":"ERROR"}',
    b'{"type":"ERROR","object":[]}',
    b'{"type":"ADDED","object":7}',
    b'{"type":"ADDED"}',
    b'{"type":"MODIFIED","object":null}',
    b'{"type":"DELETED","object":{}}',
    b'{"type":"ADDED","object":{"metadata":null}}',
    b'{"type":"ADDED","object":{"metadata":{}},"object":[]}',
    b'{"object":{"metadata":{"name":"a"}}}',
    b'{"type":null,"object":{"metadata":{"name":"a"}}}',
    b'{"type":"ADDED","object":' + nested(1_500, "list") + b"}",
)


@pytest.mark.parametrize("event", NO_EVENTS)
def test_an_event_without_type_or_object_is_left_out_and_counted(event: bytes) -> None:
    cuts: list[str] = []
    assert watch_line(event, lambda: cuts.append("cut")) == b""
    assert cuts == ["cut"] * (2 if b"[[" in event else 1)


@pytest.mark.parametrize("kind", ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"])
def test_an_error_is_known_by_its_type_alone(kind: str) -> None:
    event = {"type": kind, "object": {"metadata": {"name": "ERROR"}, "kind": "Status", "code": 410}}
    text = json.dumps(event).encode()
    assert watch_line(text) == text
    late = b'{"object":{"code":410},"type":"ERROR"}'
    assert watch_line(late) == GONE


def test_items_of_a_list_that_are_no_objects_are_left_out_and_counted() -> None:
    cuts: list[str] = []
    items = [{"metadata": {"name": "a"}}, 7, None, [], {}, {"metadata": 1}, {"metadata": {"name": "b"}}]
    assert objects_in({"items": items}, lambda: cuts.append("cut")) == [items[0], items[-1]]
    assert len(cuts) == 5
    answers: tuple[Any, ...] = ({}, {"items": None}, {"items": 7}, [], None)
    for answer in answers:
        assert objects_in(answer, pytest.fail) == []


def test_a_list_that_kopf_reads_has_objects_only() -> None:
    cuts: list[str] = []

    class Response(TolerantResponse):
        on_cut = staticmethod(cuts.append)

    async def read() -> tuple[Any, Any]:
        items = [{"metadata": {"name": "a"}}, 7, {"spec": {}}]
        answers = {"/pods": {"metadata": {"resourceVersion": "1"}, "items": items}, "/api": {"versions": ["v1"]}}

        async def handle(request: web.Request) -> web.Response:
            return web.json_response(answers[request.path])

        app = web.Application()
        app.router.add_get("/{tail:.*}", handle)
        async with TestServer(app) as server, aiohttp.ClientSession(response_class=Response) as session:
            pods, api = [await session.get(server.make_url(path)) for path in answers]
            return await pods.json(), await api.json()

    assert asyncio.run(read()) == (
        {"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "a"}}]},
        {"versions": ["v1"]},
    )
    assert cuts == ["pods"] * 2
