"""Every example is accepted by the API server's schema and rules, by the operator, and makes a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from support.crd_validation import refusals

from wrpo_operator.api.names import API_VERSION, KIND, SWEEP_KIND
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.yamlio import load_all
from wrpo_operator.plan.graph import build_graph

EXAMPLES = Path(__file__).parents[3] / "examples"
DOCUMENTS: dict[str, dict[str, Any]] = {
    f"{path.relative_to(EXAMPLES)}[{index}]": document
    for path in sorted(EXAMPLES.rglob("*.yaml"))
    for index, document in enumerate(load_all(path.read_text()))
}
EXPERIMENTS = {name: document for name, document in DOCUMENTS.items() if document.get("kind") == KIND}
OWN = {KIND, SWEEP_KIND}  # sweeps: tests/operator/sweep
OTHERS = {name: document for name, document in DOCUMENTS.items() if document.get("kind") not in OWN}


def test_there_are_examples() -> None:
    assert EXPERIMENTS


@pytest.mark.parametrize("document", EXPERIMENTS.values(), ids=EXPERIMENTS.keys())
def test_an_example_is_accepted(document: dict[str, Any]) -> None:
    assert document["apiVersion"] == API_VERSION
    assert refusals(document) == []
    assert str(build_graph(parse_spec(document["spec"]))[0].id) == "prepare"


@pytest.mark.parametrize("document", OTHERS.values(), ids=OTHERS.keys())
def test_what_an_example_brings_along_is_valid(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.37.0", strict=True)
