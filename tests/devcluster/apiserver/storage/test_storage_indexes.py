"""Lists by label and by field: an index finds the same objects as a full scan."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from devcluster.api_rig import Rig, pod
from hypothesis import given, settings
from hypothesis import strategies as st

from wrpo_devcluster.apiserver.storage.indexes import By, Equals, indexed_condition
from wrpo_devcluster.apiserver.storage.selectors import matcher
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.client import PODS

Run = Callable[[Callable[[Rig], Awaitable[None]]], None]
FIELDS = frozenset({"metadata.name", "spec.nodeName"})
CONDITIONS: dict[str, tuple[str, str, Equals | None]] = {
    "nothing selects": ("", "", None),
    "a label": ("app=x", "", Equals(By("label", "app"), "x")),
    "a label among other conditions": ("a,b!=c,d in (e)", "", Equals(By("label", "d"), "e")),
    "several values": ("a in (b,c)", "", None),
    "a field": ("", "spec.nodeName=n", Equals(By("field", "spec.nodeName"), "n")),
    "a field without a value": ("", "spec.nodeName=", Equals(By("field", "spec.nodeName"), "")),
    "a field that differs": ("", "spec.nodeName!=n", None),
    "a name": ("", "metadata.name=x", None),
}


@pytest.mark.parametrize(("labels", "fields", "expected"), CONDITIONS.values(), ids=CONDITIONS.keys())
def test_what_an_index_answers(labels: str, fields: str, expected: Equals | None) -> None:
    assert indexed_condition(labels, fields, FIELDS) == expected


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "list"]),
        st.sampled_from(["one", "two"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["", "x", "y"]),
    ),
    max_size=30,
)
SELECTORS = [
    ("app=x", ""),
    ("app=y,app", ""),
    ("", "spec.nodeName="),
    ("", "spec.nodeName=x"),
    ("app=x", "spec.nodeName=x"),
]


@settings(max_examples=60, deadline=None)
@given(OPERATIONS)
def test_a_list_by_an_index_is_the_filtered_list(operations: list[tuple[str, str, str, str]]) -> None:
    with TemporaryDirectory() as directory:
        store = Store(Path(directory) / "state.db")
        for operation, namespace, name, value in operations:
            if operation == "put":
                labels = {"labels": {"app": value}} if value else {}
                spec = {"nodeName": value} if value else {}
                store.put(
                    "/pods",
                    namespace,
                    name,
                    {"metadata": {"name": name, "namespace": namespace, **labels}, "spec": spec},
                )
            elif operation == "delete" and store.get("/pods", namespace, name):
                store.delete("/pods", namespace, name)
            for selectors in SELECTORS:
                # The first list builds an index, and all later ones rely on its updates.
                _agree(store, *selectors, namespace if operation == "list" else None)
        store.close()


def _agree(store: Store, labels: str, fields: str, namespace: str | None) -> None:
    matches, condition = matcher(labels, fields, FIELDS), indexed_condition(labels, fields, FIELDS)
    assert matches is not None
    assert condition is not None
    every = list(store.list("/pods", namespace))
    assert [record for record in store.list("/pods", namespace, condition) if matches(record.obj)] == [
        record for record in every if matches(record.obj)
    ]


def test_lists_select_in_process_and_over_http(run: Run) -> None:
    async def scenario(rig: Rig) -> None:
        for name, app in (("b", "x"), ("a", "x"), ("c", "y")):
            body = pod(name)
            body["metadata"]["labels"] = {"app": app, "all": "yes"}
            await rig.client.create(PODS, body, "ns")
        await rig.client.patch(PODS, "c", "ns", {"metadata": {"labels": {"app": "x"}}})
        await rig.client.patch(PODS, "b", "ns", {"metadata": {"labels": {"app": None}}})
        found = await rig.client.list(PODS, "ns", label_selector="app=x,all=yes")
        assert [obj["metadata"]["name"] for obj in found] == ["a", "c"]
        _, page = await rig.request("GET", "/api/v1/pods?labelSelector=app%3Dx&limit=1")
        assert _names(page) == ["a"]
        token = page["metadata"]["continue"]
        _, rest = await rig.request("GET", f"/api/v1/pods?labelSelector=app%3Dx&limit=1&continue={token}")
        assert _names(rest) == ["c"]

    run(scenario)


def _names(listed: dict[str, Any]) -> list[str]:
    return [item["metadata"]["name"] for item in listed["items"]]
