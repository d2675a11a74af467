"""Lists and the store in the face of large objects: bounded in bytes, not in objects."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from test_runtime_kube import Server, talk

from wrpo_operator.runtime.kube import HttpKube, list_all
from wrpo_operator.runtime.paging import FIRST_PAGE, LARGEST_PAGE, PAGE_BYTES, REACH
from wrpo_operator.runtime.resources import EXPERIMENTS
from wrpo_operator.runtime.store import ObjectStore

LARGE, SMALL = 1_200_000, 2_000


class Listing(Server):
    """Serves objects of given sizes page by page."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._sizes = sizes
        self.pages: list[int] = []
        """Objects of each page asked for."""
        self.bytes: list[int] = []

    async def handle(self, request: web.Request) -> web.Response:
        limit, start = int(request.query["limit"]), int(request.query.get("continue", "0"))
        part = self._sizes[start : start + limit]
        end = start + len(part)
        items = [{"metadata": {"name": f"e{start + number}"}, "spec": "x" * size} for number, size in enumerate(part)]
        more = {"continue": str(end)} if end < len(self._sizes) else {}
        text = json.dumps({"items": items, "metadata": {"resourceVersion": "9", **more}})
        self.pages.append(len(part))
        self.bytes.append(len(text))
        return web.Response(text=text)


def listed(sizes: list[int], tmp_path: Path, *, times: int) -> list[Listing]:
    """List these objects so often with one client."""
    server = Listing(sizes)
    passes: list[Listing] = []

    async def work(client: HttpKube) -> None:
        for _ in range(times):
            server.pages, server.bytes = [], []
            names = [item["metadata"]["name"] for item in await list_all(client, EXPERIMENTS)]
            assert names == [f"e{number}" for number in range(len(sizes))]
            seen = Listing(sizes)
            seen.pages, seen.bytes = server.pages, server.bytes
            passes.append(seen)

    talk(server, work, tmp_path)
    return passes


def test_large_objects_come_few_at_a_time_from_the_first_page_on(tmp_path: Path) -> None:
    first, second = listed([LARGE] * 20, tmp_path, times=2)
    assert max(first.bytes) <= FIRST_PAGE * LARGE * 1.01
    assert max(second.bytes) <= PAGE_BYTES
    assert second.pages == [3] * 6 + [2]


def test_small_objects_soon_come_in_full_pages(tmp_path: Path) -> None:
    first, second = listed([SMALL] * 300, tmp_path, times=2)
    assert first.pages == [4, 8, 16, 32, 64, 100, 76]
    assert second.pages == [LARGEST_PAGE] * 3


def test_large_objects_behind_small_ones_are_not_asked_for_by_the_hundred_again(tmp_path: Path) -> None:
    sizes = [SMALL] * 200 + [LARGE] * 60
    _, second, third = listed(sizes, tmp_path, times=3)
    for later in (second, third):
        assert max(later.bytes) <= 3 * REACH * LARGE * 1.01
        assert later.pages[:3] == [3, 6, 12]


def large_experiment(number: int) -> dict[str, Any]:
    """Return an experiment as anybody may store it: text that compresses as words of people do, not better."""
    words = random.Random(number)
    texts = {f"a{index}": words.randbytes(5_000).hex() for index in range(118)}
    return {
        "metadata": {"name": f"e{number}", "namespace": "ns", "uid": f"u{number}", "resourceVersion": "1"},
        "spec": {"suspend": True, "podTemplate": {"metadata": {"annotations": texts}}},
    }


def test_large_objects_are_kept_small() -> None:
    objects = [large_experiment(number) for number in range(10)]
    store = ObjectStore()
    tracemalloc.start()
    try:
        for obj in objects:
            store.upsert(EXPERIMENTS, obj)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept <= 0.65 * sum(len(json.dumps(obj)) for obj in objects)
    assert store.get(EXPERIMENTS, "ns", "e3") == objects[3]


@pytest.mark.parametrize("size", [10, 40_000])
def test_an_object_of_any_size_comes_back_as_it_was(size: int) -> None:
    store = ObjectStore()
    obj = {"metadata": {"name": "e", "namespace": "ns", "uid": "u"}, "spec": {"text": "é🦙" * size}}
    store.upsert(EXPERIMENTS, obj)
    assert store.get(EXPERIMENTS, "ns", "e") == obj
