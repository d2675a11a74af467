"""Servers in several threads of one process share the schemas of built-in kinds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from wrpo_devcluster.apiserver.schema import schema

KINDS = ("io.k8s.api.core.v1.Pod", "io.k8s.api.batch.v1.Job", "io.k8s.api.apps.v1.Deployment")
THREADS = 4


@pytest.fixture(autouse=True)
def _frequent_switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    monkeypatch.setattr(schema, "_built", {})
    yield
    sys.setswitchinterval(before)


def test_no_thread_sees_a_schema_before_it_is_complete() -> None:
    together = threading.Barrier(THREADS)

    def read(number: int) -> list[tuple[int, int, str]]:
        together.wait()
        kinds = KINDS[number % len(KINDS) :] + KINDS[: number % len(KINDS)]
        nodes = sorted((schema.builtin(kind) for kind in kinds), key=lambda node: node.definition)
        return [(id(node), len(node.properties), node.type) for node in nodes]

    with ThreadPoolExecutor(THREADS) as pool:
        first, *others = pool.map(read, range(THREADS))

    assert others == [first] * (THREADS - 1)
    assert [(properties, kind) for _, properties, kind in first] == [(5, "object")] * len(KINDS)
    assert schema._unfinished == {}
