"""`wrpo plan` refuses the metadata that the API server refuses, and no other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from wrpo_devcluster.apiserver.server import ApiServer
from wrpo_devcluster.client import CRDS, NAMESPACES, ApiError, Resource
from wrpo_operator.api.object_rules import object_errors

ROOT = Path(__file__).parents[3]
EXPERIMENTS = Resource("wrpo.ai", "v1alpha1", "wrpoexperiments")
ENVELOPES: dict[str, dict[str, Any]] = {
    "a plain name": {"name": "fusion"},
    "capital letters": {"name": "Fusion_1"},
    "63 characters": {"name": "x" * 63},
    "64 characters": {"name": "x" * 64},
    "254 characters": {"name": "x" * 254},
    "dots": {"name": "llama-3.1-8b"},
    "two dots": {"name": "a..b"},
    "a digit in front": {"name": "7b-dpo"},
    "a dash at the end": {"name": "a-"},
    "a dash before a dot": {"name": "a-.b"},
    "a slash": {"name": "a/b"},
    "no name": {},
    "an empty name": {"name": ""},
    "a number as a name": {"name": 7},
    "a label": {"name": "a", "labels": {"team": "x", "example.com/part": "b_1"}},
    "an empty label": {"name": "a", "labels": {"team": ""}},
    "a label with a blank": {"name": "a", "labels": {"team": "a b"}},
    "a label of 64 characters": {"name": "a", "labels": {"team": "x" * 64}},
    "a label that is a number": {"name": "a", "labels": {"team": 1}},
    "a label that is a boolean": {"name": "a", "labels": {"team": True}},
    "a label's key with a blank": {"name": "a", "labels": {"a b": "x"}},
    "a label's key of 64 characters": {"name": "a", "labels": {"x" * 64: "x"}},
    "a label's key with two slashes": {"name": "a", "labels": {"a/b/c": "x"}},
    "a label's key with a capital domain": {"name": "a", "labels": {"Example.com/b": "x"}},
    "an annotation": {"name": "a", "annotations": {"note": "any text: {1}"}},
    "an annotation that is a number": {"name": "a", "annotations": {"note": 1.5}},
    "an annotation's key with a blank": {"name": "a", "annotations": {"a b": "x"}},
    "annotations of more than 256 KiB": {"name": "a", "annotations": {"note": "x" * 262_145}},
    "labels as a list": {"name": "a", "labels": ["x"]},
    "an unknown field": {"name": "a", "nmae": "b"},
}  # fmt: skip


def experiment(metadata: Any, **more: Any) -> dict[str, Any]:
    spec = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text(encoding="utf-8"))["spec"]
    return {"apiVersion": "wrpo.ai/v1alpha1", "kind": "WRPOExperiment", "metadata": metadata, "spec": spec, **more}


def refused_by_server(tmp_path: Path, documents: dict[str, dict[str, Any]]) -> set[str]:
    async def scenario() -> set[str]:
        server = ApiServer(tmp_path / "state", admin_token="admin")
        client = server.client("system:tests")
        await client.create(NAMESPACES, {"metadata": {"name": "ns"}})
        await client.create(CRDS, yaml.safe_load((ROOT / "crds" / "wrpoexperiments.wrpo.ai.yaml").read_text()))
        found = set()
        for name, document in documents.items():
            try:
                await client.create(EXPERIMENTS, document, "ns")
            except ApiError:
                found.add(name)
            else:
                await client.delete(EXPERIMENTS, document["metadata"]["name"], "ns")
        await server.close()
        return found

    return asyncio.run(scenario())


def test_plan_and_server_refuse_the_same_metadata(tmp_path: Path) -> None:
    documents = {name: experiment(metadata) for name, metadata in ENVELOPES.items()}
    ours = {name for name, document in documents.items() if object_errors(document)}
    # Of an unknown field the server only warns, and drops it; kubectl asks it to refuse.
    assert ours == refused_by_server(tmp_path, documents) | {"an unknown field"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (experiment({"name": "a"}, sepc={}), "sepc is not a known field."),
        ({**experiment({"name": "a"}), "apiVersion": "wrpo.ai/v1"}, 'apiVersion is "wrpo.ai/v1"; set it to'),
        (
            experiment({"name": "a", "namespace": "My_Lab"}),
            'metadata.namespace is "My_Lab"; a namespace has at most 63',
        ),
        (experiment({"name": "a", "labels": {"v": 2}}), "metadata.labels.v is 2; it must be a text: put it in quotes."),
        (experiment(None), "metadata is null; it must be a map with at least a name."),
        (
            experiment({"name": "a", "finalizers": ["x y"]}),
            'metadata.finalizers[0] is "x y"; it must be a name such as',
        ),
    ],
)
def test_an_error_names_field_value_and_remedy(document: dict[str, Any], said: str) -> None:
    assert [error for error in object_errors(document) if error.startswith(said)] != []
